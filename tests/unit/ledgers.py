"""Ledgers under test, with what tests do behind their backs: time passes, the store is lost."""

from __future__ import annotations

from typing import Any, Protocol
from uuid import UUID

from redis import Redis

from dispatcher.ledger import claims, keys, redis_ledger
from dispatcher.testing import ledger as in_memory


class LedgerKit(Protocol):
    """A ledger and its surroundings; durations are seconds."""

    @property
    def book(self) -> claims.Ledger:
        """The ledger."""

    def flush(self) -> None:
        """Lose everything."""

    def pass_time(self, seconds: float) -> None:
        """Let everything that is kept be so much older; the clock went back if negative."""


class RedisKit:
    """A ledger in a real Valkey."""

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self.book = redis_ledger.RedisLedger(redis)

    def flush(self) -> None:
        self._redis.flushall()

    def pass_time(self, seconds: float) -> None:
        for key in self._redis.scan_iter(f"{keys.PREFIX}claim:*"):
            _make_older(self._redis, key, seconds)


class Clock:
    """A clock that moves only when it is told to."""

    def __init__(self) -> None:
        self.seconds = 1_000_000_000.0

    def __call__(self) -> float:
        return self.seconds


class InMemoryKit:
    """A ledger in memory."""

    def __init__(self) -> None:
        self._clock = Clock()
        self.book = in_memory.InMemoryLedger(clock=self._clock)

    def flush(self) -> None:
        self.book.flush()

    def pass_time(self, seconds: float) -> None:
        self._clock.seconds += seconds


def age(redis: Redis, flow_run_id: UUID, seconds: float) -> None:
    """Let one claim in Redis be so much older."""
    _make_older(redis, f"{keys.PREFIX}claim:{flow_run_id}", seconds)


def _make_older(redis: Redis, key: str, seconds: float) -> None:
    milliseconds = int(seconds * 1000)
    for field in ("opened_at", "touched_at"):
        redis.hincrby(key, field, -milliseconds)
    if seconds < 0:
        # Redis' own clock stays, so what came from it is from a time ahead.
        fence: Any = redis.hget(key, "fence")
        redis.hset(key, "fence", str(int(fence) - milliseconds * 1000))
    remaining: Any = redis.pttl(key)
    if remaining >= 0:
        redis.pexpire(key, max(remaining - milliseconds, 0))
