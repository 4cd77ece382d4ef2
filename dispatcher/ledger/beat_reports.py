"""On which hosts beat is alive: every tick that it sends is a sign of life."""

from __future__ import annotations

import contextlib

from redis import Redis, RedisError

from dispatcher.ledger import keys

LIFETIME = 60.0  # seconds; many times the usual interval between two ticks


class BeatReports:
    """The hosts whose beat has sent a tick of late."""

    def __init__(self, redis: Redis, *, prefix: str = keys.PREFIX) -> None:
        self._redis = redis
        self._prefix = prefix

    def report(self, host: str, *, lifetime_seconds: float = LIFETIME) -> None:
        """Note that beat has just sent a tick; raises nothing, since the next one comes soon."""
        with contextlib.suppress(RedisError):
            self._redis.set(self._key(host), "1", px=int(lifetime_seconds * 1000))

    def is_alive(self, host: str) -> bool:
        """Whether a report of the host's beat is still valid."""
        return bool(self._redis.exists(self._key(host)))

    def _key(self, host: str) -> str:
        return f"{self._prefix}beat:{host}"
