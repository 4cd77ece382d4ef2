"""How many runs a worker executes at once, where it must keep a place for control work."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class RunPlaces:
    """The places of this worker; ``limit`` is ``None`` where its pool is the only limit.

    Set by what describes the worker. No more runs are claimed than the fleet has slots, but when
    other workers go away their claimed runs come to those that are left.
    """

    limit: int | None = None

    def has_room(self, executing: int) -> bool:
        """Whether one more run may begin beside so many."""
        return self.limit is None or executing < self.limit
