"""How many turns each deployment has had; to lose that costs nobody more than one turn."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID

from redis import Redis

from dispatcher.ledger import keys

LIFETIME = 600.0  # seconds; turns of which nobody took one for so long begin anew
# A server may take no more deployments than this in one condition.
MAX_SERVED = 1000


class TurnsTaken:
    """The turns of the deployments of each pool, kept in Redis."""

    def __init__(self, redis: Redis, *, prefix: str = keys.PREFIX) -> None:
        self._redis = redis
        self._prefix = prefix

    def note(self, pool: str, turns: Mapping[UUID, int]) -> None:
        """Note who is having a turn."""
        pipeline = self._redis.pipeline(transaction=False)
        for member, number in turns.items():
            pipeline.hincrby(self._key(pool), str(member), number)
        pipeline.expire(self._key(pool), int(LIFETIME))
        pipeline.execute()

    def read(self, pool: str) -> dict[UUID, int]:
        """Who has had how many turns; everybody begins anew when they are too many to ask about."""
        found: Any = self._redis.hgetall(self._key(pool))
        if len(found) > MAX_SERVED:
            self.replace(pool, {})
            return {}
        return {UUID(member): int(turns) for member, turns in found.items()}

    def replace(self, pool: str, served: Mapping[UUID, int]) -> None:
        """Have these turns and no others."""
        pipeline = self._redis.pipeline()
        pipeline.delete(self._key(pool))
        if served:
            turns: Any = {str(member): str(number) for member, number in served.items()}
            pipeline.hset(self._key(pool), mapping=turns)
        pipeline.execute()

    def _key(self, pool: str) -> str:
        return f"{self._prefix}turns:{pool}"
