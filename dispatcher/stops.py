"""A worker's request to its pool child to stop: SIGTERM, heard by the task that executes a run.

Celery sends it to the children of a worker that shuts down cold, and would have it raise
``SystemExit`` in the middle of whatever the task does. Here the task stops its job first.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType


class StopRequests:
    """Holds SIGTERM back while a task executes, and delivers it once the task is through."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.requested = False

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Turn SIGTERM into ``requested`` for the block, then let it do what it always does.

        Only the main thread can; in others, on a threads pool, the signal does not arrive anyway.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
            if self.requested:
                os.kill(os.getpid(), signal.SIGTERM)

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.requested = True
        self._wake()
