"""Rounds: what the ticks of many work pools ask for, and one of them does for all."""

from __future__ import annotations

from redis import Redis

from dispatcher.ledger import keys

# Of the time between two ticks: a little less, so that no tick finds the last round too young.
SHARE = 0.8


class Rounds:
    """Which rounds have begun of late, kept in Redis.

    Beat sends a tick for each pool, and the first one of an interval begins the round.
    """

    def __init__(self, redis: Redis, *, prefix: str = keys.PREFIX) -> None:
        self._redis = redis
        self._prefix = prefix

    def begin(self, name: str, *, seconds: float) -> bool:
        """Begin a round, unless one of this name has begun within so many seconds."""
        if seconds <= 0:
            return True
        key = self._key(name)
        return bool(self._redis.set(key, "1", nx=True, px=max(int(seconds * 1000), 1)))

    def begin_tick(self, name: str, interval: float) -> bool:
        """Begin a round for a tick, unless another one of this interval (in seconds) has."""
        return self.begin(name, seconds=SHARE * interval)

    def postpone(self, name: str, *, seconds: float) -> None:
        """Let no round of this name begin for so many seconds from now."""
        self._redis.set(self._key(name), "1", px=int(seconds * 1000))

    def hasten(self, name: str) -> None:
        """Let the next tick begin a round, however recent the last one is."""
        self._redis.delete(self._key(name))

    def _key(self, name: str) -> str:
        return f"{self._prefix}round:{name}"
