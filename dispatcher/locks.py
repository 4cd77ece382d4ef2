"""Leased locks: a tick that runs twice, late, or on two machines at once does its work once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress

from redis import Redis
from redis.exceptions import LockNotOwnedError

from dispatcher import ledger


class Locks:
    """Named locks in Redis, each given up by itself after a lease."""

    def __init__(self, redis: Redis, *, prefix: str = ledger.PREFIX) -> None:
        self._redis = redis
        self._prefix = prefix

    @contextmanager
    def hold(self, name: str, *, lease_seconds: float) -> Iterator[bool]:
        """Hold a lock for the block, or yield false at once if somebody else holds it."""
        lock = self._redis.lock(f"{self._prefix}lock:{name}", timeout=lease_seconds, blocking=False)
        held = lock.acquire()
        try:
            yield held
        finally:
            if held:
                # The lease may have run out during the work; whoever took the lock since keeps it.
                with suppress(LockNotOwnedError):
                    lock.release()
