"""Growing and shrinking a worker's pool of threads, which Celery does for processes alone."""

from __future__ import annotations

from typing import Any


class Resizing:
    """What a pool of threads answers to ``pool_grow``, ``pool_shrink`` and ``--autoscale``."""

    def __init__(self, pool: Any) -> None:
        self._pool = pool

    def grow(self, n: int = 1) -> None:
        """Have so many threads more."""
        self._resize(self._pool.limit + n)

    def shrink(self, n: int = 1) -> None:
        """Have so many threads less; one that executes a run finishes it.

        Raises:
            ValueError: no thread would be left.
        """
        if self._pool.limit - n < 1:
            raise ValueError("Can't shrink pool. One thread has to stay.")
        self._resize(self._pool.limit - n)

    def _resize(self, limit: int) -> None:
        self._pool.limit = limit
        # Threads beyond it stay without work: the worker receives no more messages than it says.
        self._pool.executor._max_workers = limit


def make_resizable(pool: Any) -> None:
    """Give a pool of threads what Celery calls to change its size; others have it, or cannot."""
    if hasattr(pool, "executor") and not hasattr(pool, "grow"):
        resizing = Resizing(pool)
        pool.grow, pool.shrink = resizing.grow, resizing.shrink
