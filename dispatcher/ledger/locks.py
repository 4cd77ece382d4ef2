"""Leased locks: a tick that runs twice, late, or on two machines at once does its work once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from redis import Redis
from redis.exceptions import LockNotOwnedError

from dispatcher.ledger import keys


def key(name: str, *, prefix: str = keys.PREFIX) -> str:
    """Where a lock is in Redis."""
    return f"{prefix}lock:{name}"


class Locks:
    """Named locks in Redis, each given up by itself after a lease."""

    def __init__(self, redis: Redis, *, prefix: str = keys.PREFIX) -> None:
        self._redis = redis
        self._prefix = prefix

    @contextmanager
    def lease(self, name: str, *, lease_seconds: float) -> Iterator[Callable[[], bool] | None]:
        """Hold a lock for long, or yield ``None`` at once if somebody else holds it.

        The block gets what renews the lease, which returns false once the lock is somebody else's.
        """
        lock = self._redis.lock(
            key(name, prefix=self._prefix),
            timeout=lease_seconds,
            blocking=False,
            thread_local=False,
        )

        def renew() -> bool:
            try:
                return bool(lock.reacquire())
            except LockNotOwnedError:
                return False

        if not lock.acquire():
            yield None
            return
        try:
            yield renew
        finally:
            with suppress(LockNotOwnedError):
                lock.release()

    @contextmanager
    def hold(self, name: str, *, lease_seconds: float) -> Iterator[bool]:
        """Hold a lock for the block, or yield false at once if somebody else holds it."""
        lock = self._redis.lock(
            key(name, prefix=self._prefix), timeout=lease_seconds, blocking=False
        )
        held = lock.acquire()
        try:
            yield held
        finally:
            if held:
                # The lease may have run out during the work; whoever took the lock since keeps it.
                with suppress(LockNotOwnedError):
                    lock.release()
