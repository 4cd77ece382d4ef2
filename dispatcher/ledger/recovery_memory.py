"""What the recover task has seen over time, kept in Redis between its ticks."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from redis import Redis

from dispatcher.ledger import keys, scripts

GAP_SECONDS = 15.0


class RecoveryMemory:
    """Memory of one fleet's workers and recover tasks. Durations are seconds by Redis' clock.

    ``patience_seconds`` is how long something must have been so before it counts: long enough
    for every holder that is alive to show itself. A time longer than ``gap_seconds`` in which
    nobody looked means that the ledger was away.
    """

    def __init__(
        self,
        redis: Redis,
        *,
        patience_seconds: float,
        gap_seconds: float = GAP_SECONDS,
        prefix: str = keys.PREFIX,
    ) -> None:
        self._patience = patience_seconds
        self._gap = gap_seconds
        self._prefix = prefix
        self._steady = scripts.script(redis, "steady")
        self._unclaimed = scripts.script(redis, "unclaimed")

    def note(self) -> float:
        """Note that the ledger is there; return for how many seconds it has been, without a gap.

        Every worker does so all the time, so that nothing but an outage of the ledger, or of the
        whole fleet, makes a gap.
        """
        elapsed_ms = self._steady(keys=[f"{self._prefix}steady"], args=[int(self._gap * 1000)])
        return float(elapsed_ms) / 1000

    def is_steady(self) -> bool:
        """Whether nobody's lease can have run out for lack of Redis.

        After a gap, or with a ledger that is new, leases count only again once every holder has
        had the time to renew.
        """
        return self.note() >= self._patience

    def unclaimed(self, scope: str, flow_run_ids: Sequence[UUID]) -> set[UUID]:
        """Note the runs of some pools that have no claim now; return those long without one."""
        args = [int(self._patience * 1000), *(str(run_id) for run_id in flow_run_ids)]
        found = self._unclaimed(keys=[f"{self._prefix}unclaimed:{scope}"], args=args)
        return {UUID(run_id) for run_id in found}
