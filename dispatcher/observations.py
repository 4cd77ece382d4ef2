"""What the recover task has seen over time, kept in Redis between its ticks."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import resources
from typing import Any
from uuid import UUID

from redis import Redis

from dispatcher import ledger

GAP_SECONDS = 15.0


class Observations:
    """Memory of one fleet's recover tasks. Durations are seconds by Redis' clock.

    ``patience_seconds`` is how long something must have been so before it counts: long enough
    for every holder that is alive to show itself. A pause between two ticks longer than
    ``gap_seconds`` means that the ledger, or the schedule, was away.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        patience_seconds: float,
        gap_seconds: float = GAP_SECONDS,
        prefix: str = ledger.PREFIX,
    ) -> None:
        self._patience = patience_seconds
        self._gap = gap_seconds
        self._prefix = prefix
        self._steady = _script(redis, "steady")
        self._unclaimed = _script(redis, "unclaimed")

    def is_steady(self, pool: str) -> bool:
        """Note a look at a pool; true if nobody's lease can have run out for lack of Redis.

        After a gap in the looks, or with a ledger that is new, leases count only again once
        every holder has had the time to renew.
        """
        elapsed_ms = self._steady(
            keys=[f"{self._prefix}steady:{pool}"], args=[int(self._gap * 1000)]
        )
        return bool(elapsed_ms >= self._patience * 1000)

    def unclaimed(self, pool: str, flow_run_ids: Sequence[UUID]) -> set[UUID]:
        """Note the runs of a pool that have no claim now; return those long without one."""
        args = [int(self._patience * 1000), *(str(run_id) for run_id in flow_run_ids)]
        found = self._unclaimed(keys=[f"{self._prefix}unclaimed:{pool}"], args=args)
        return {UUID(run_id) for run_id in found}


def _script(redis: Redis, name: str) -> Any:
    source = resources.files("dispatcher").joinpath("lua", f"{name}.lua").read_text("utf-8")
    return redis.register_script(source)
