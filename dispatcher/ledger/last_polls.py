"""When each work pool was last polled, kept in Redis for the health and status of the fleet."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from redis import Redis

from dispatcher.ledger import keys


class LastPolls:
    """The time of each pool's last successful poll, by Redis' clock.

    A poll counts that ended without an error, also one that found every slot in use and so did
    not ask Prefect: a fleet that is busy for hours with long runs is well. One that could not
    ask Prefect or Redis does not count.
    """

    def __init__(self, redis: Redis, *, prefix: str = keys.PREFIX) -> None:
        self._redis = redis
        self._times = f"{prefix}polls"

    def record(self, pool: str) -> None:
        """Note that a pool has just been polled."""
        self._redis.hset(self._times, pool, str(self._now()))

    def ages(self, pools: Sequence[str]) -> dict[str, float]:
        """How many seconds ago each pool was polled; one that never was is left out."""
        times: Any = self._redis.hmget(self._times, list(pools))
        now = self._now()
        return {
            pool: max(now - float(time), 0.0)
            for pool, time in zip(pools, times, strict=True)
            if time is not None
        }

    def _now(self) -> float:
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1_000_000
