"""A claim ledger in memory, for tests and simulations that need no Redis.

It answers as :class:`dispatcher.ledger.redis_ledger.RedisLedger` does; the project's own tests
run the same cases against both. Its clock is given, so a test can let claims grow old at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from uuid import UUID

from dispatcher.ledger import redis_ledger
from dispatcher.ledger.claims import (
    ANYBODY,
    FORFEITED_AT,
    CancelResult,
    Claim,
    Lease,
    NewClaim,
    Refusal,
    Renewal,
    Stage,
    node_of,
)

_REFUSALS = {Stage.CLOSED: Refusal.CLOSED, Stage.FINISHED: Refusal.FINISHED}
_UNHELD = frozenset({Stage.OPENED, Stage.PENDING})


@dataclass
class _Entry:
    """What is kept of a run: its last claim, and until when a closed one is remembered."""

    claim: Claim
    forgotten_at: float | None = None


class InMemoryLedger:
    """The :class:`dispatcher.ledger.claims.Ledger` in memory; any number of threads may use it.

    ``clock`` tells seconds since the epoch.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], float] = time.time,
        retention_seconds: float = redis_ledger.RETENTION_SECONDS,
    ) -> None:
        self._clock = clock
        self._retention = retention_seconds
        self._lock = threading.Lock()
        self._entries: dict[UUID, _Entry] = {}

    def flush(self) -> None:
        """Lose everything, as a Redis that starts anew."""
        with self._lock:
            self._entries.clear()

    def open(
        self,
        claims: Sequence[NewClaim],
        *,
        pool: str,
        transition_id: UUID,
        slots: int,
        node: str = ANYBODY,
        weight: int = 1,
    ) -> list[NewClaim]:
        """Open those claims that find free slots of a worker and no open claim on their run."""
        with self._lock:
            now = self.now()
            wanted = [
                Claim(
                    flow_run_id=claim.flow_run_id,
                    claim_id=claim.claim_id,
                    pool=pool,
                    transition_id=transition_id,
                    stage=Stage.OPENED,
                    attempt=1,
                    opened_at=now,
                    touched_at=now,
                    meant_for=node,
                    weight=weight,
                )
                for claim in claims
            ]
            return [claim.new for claim in wanted if self._open(claim, slots)]

    def _open(self, claim: Claim, slots: int) -> bool:
        kept = self._find(claim.flow_run_id)
        if kept is not None and kept.stage is not Stage.CLOSED:
            return kept.claim_id == claim.claim_id
        if self._used(claim.meant_for) + claim.weight > slots:
            return False
        if kept is not None:
            claim = replace(claim, attempt=kept.attempt + 1, fence=kept.fence)
        self._keep(claim)
        return True

    def accept(self, claim: NewClaim) -> int:
        """Note that Prefect accepted Pending; return the attempt, 0 if the claim is closed."""
        with self._lock:
            kept = self._find(claim.flow_run_id, claim.claim_id)
            if kept is None or kept.stage is Stage.CLOSED:
                return 0
            if kept.stage is Stage.OPENED:
                self._keep(replace(kept, stage=Stage.PENDING, touched_at=self.now()))
            return kept.attempt

    def resend(self, claim: NewClaim, *, node: str = ANYBODY) -> bool:
        """Note that a claim's message is sent again; false if it does not wait for its task."""
        with self._lock:
            kept = self._find(claim.flow_run_id, claim.claim_id)
            if kept is None or kept.stage is not Stage.PENDING:
                return False
            resends = kept.resends + 1
            self._keep(replace(kept, resends=resends, touched_at=self.now(), meant_for=node))
            return True

    def acquire(
        self, claim: NewClaim, *, owner: str, pools: Collection[str] = ()
    ) -> Lease | Refusal:
        """Take the lease."""
        with self._lock:
            kept = self._find(claim.flow_run_id)
            if kept is None:
                return Refusal.MISSING
            refusal = _refusal(kept, claim.claim_id, owner, pools)
            if refusal is not None:
                return refusal
            fence = kept.fence if kept.stage is Stage.HELD else self._next_fence(kept)
            held = replace(
                kept,
                stage=Stage.HELD,
                owner=owner,
                fence=fence,
                touched_at=self.now(),
                meant_for=node_of(owner),
            )
            self._keep(held)
            return _lease(held)

    def _next_fence(self, kept: Claim) -> int:
        return max(kept.fence + 1, int(self.now() * 1_000_000))

    def renew(self, lease: Lease, *, memory: int | None = None) -> tuple[Renewal, bool]:
        """Renew a lease; the second value tells whether a cancel was asked for."""
        with self._lock:
            kept = self._find(lease.flow_run_id)
            if kept is None:
                return Renewal.MISSING, False
            if not _is_held_by(kept, lease):
                return Renewal.LOST, False
            used = kept.memory if memory is None else memory
            self._keep(replace(kept, touched_at=self.now(), memory=used))
            return Renewal.HELD, kept.cancel_requested

    def restore(self, lease: Lease) -> bool:
        """Bring a lease back into a ledger that has lost it; false if somebody else has one."""
        with self._lock:
            kept = self._find(lease.flow_run_id)
            if kept is not None:
                return _is_held_by(kept, lease)
            self._keep(
                Claim(
                    flow_run_id=lease.flow_run_id,
                    claim_id=lease.claim_id,
                    pool=lease.pool,
                    transition_id=lease.transition_id,
                    stage=Stage.HELD,
                    attempt=lease.attempt,
                    opened_at=self.now(),
                    touched_at=self.now(),
                    owner=lease.owner,
                    fence=lease.fence,
                    meant_for=node_of(lease.owner),
                    weight=lease.weight,
                )
            )
            return True

    def request_cancel(self, flow_run_id: UUID) -> tuple[CancelResult, UUID | None]:
        """Ask the holder to stop, or close a claim that nobody holds."""
        with self._lock:
            kept = self._find(flow_run_id)
            if kept is None:
                return CancelResult.ABSENT, None
            return self._request_cancel(kept), kept.claim_id

    def _request_cancel(self, kept: Claim) -> CancelResult:
        if kept.stage in _REFUSALS:
            return CancelResult.ABSENT
        if kept.stage in _UNHELD:
            self._shut(kept, attempt=kept.attempt)
            return CancelResult.CLOSED
        if kept.cancel_requested:
            return CancelResult.WAITING
        self._keep(replace(kept, cancel_requested=True))
        return CancelResult.MARKED

    def finish(self, lease: Lease, outcome: str) -> bool:
        """Keep an outcome that Prefect could not be told, and free the slot."""
        with self._lock:
            kept = self._find(lease.flow_run_id, lease.claim_id)
            if kept is None or kept.fence != lease.fence:
                return False
            if kept.stage not in {Stage.HELD, Stage.FINISHED}:
                return False
            self._keep(replace(kept, stage=Stage.FINISHED, outcome=outcome, touched_at=self.now()))
            return True

    def close(self, claim: NewClaim, *, fence: int | None = None, failed: bool = False) -> bool:
        """Close a claim; a held or finished one only with its fence."""
        with self._lock:
            kept = self._find(claim.flow_run_id, claim.claim_id)
            if kept is None:
                return False
            if kept.stage is Stage.CLOSED:
                return True
            if kept.stage not in _UNHELD and kept.fence != fence:
                return False
            self._shut(
                kept, attempt=_attempts_left(kept, ended=kept.stage not in _UNHELD and not failed)
            )
            return True

    def expire(self, claim: Claim, *, untouched_seconds: float) -> bool:
        """Close a claim that is still as it was read and has been untouched so long."""
        with self._lock:
            kept = self._find(claim.flow_run_id, claim.claim_id)
            if kept is None:
                return False
            if kept.stage is Stage.CLOSED:
                return True
            if (kept.stage, kept.fence) != (claim.stage, claim.fence):
                return False
            if self.now() - kept.touched_at < untouched_seconds:
                return False
            self._shut(kept, attempt=_attempts_left(kept, ended=False))
            return True

    def forfeit(self, claim: NewClaim, *, node: str) -> str | None:
        """Note that a claim's holder on a Celery worker is dead: its lease is over now."""
        with self._lock:
            kept = self._find(claim.flow_run_id, claim.claim_id)
            if kept is None or kept.stage is not Stage.HELD or kept.node != node:
                return None
            self._keep(replace(kept, touched_at=FORFEITED_AT))
            return kept.pool

    def get(self, flow_run_id: UUID) -> Claim | None:
        """Read a claim, open or closed."""
        with self._lock:
            return self._find(flow_run_id)

    def open_run_ids(self) -> set[UUID]:
        """The runs whose claims use a slot, of every pool."""
        with self._lock:
            return self._using_slots()

    def used_slots(self, nodes: Sequence[str]) -> dict[str, int]:
        """How many slots of each worker are taken by claims."""
        with self._lock:
            return {node: self._used(node) for node in nodes}

    def open_claims(self) -> list[Claim]:
        """Every claim that is not closed, oldest first."""
        with self._lock:
            kept = [entry.claim for entry in self._entries.values()]
        live = [claim for claim in kept if claim.stage is not Stage.CLOSED]
        return sorted(live, key=lambda claim: claim.opened_at)

    def now(self) -> float:
        """The ledger's clock: seconds since the epoch."""
        return self._clock()

    def _find(self, flow_run_id: UUID, claim_id: UUID | None = None) -> Claim | None:
        entry = self._entries.get(flow_run_id)
        if entry is None:
            return None
        if entry.forgotten_at is not None and self.now() >= entry.forgotten_at:
            del self._entries[flow_run_id]
            return None
        if claim_id is not None and entry.claim.claim_id != claim_id:
            return None
        return entry.claim

    def _keep(self, claim: Claim) -> None:
        self._entries[claim.flow_run_id] = _Entry(claim)

    def _shut(self, claim: Claim, *, attempt: int) -> None:
        closed = replace(claim, stage=Stage.CLOSED, attempt=attempt)
        self._entries[claim.flow_run_id] = _Entry(closed, self.now() + self._retention)

    def _used(self, node: str) -> int:
        using = (self._entries[run_id].claim for run_id in self._using_slots())
        return sum(claim.weight for claim in using if claim.meant_for == node)

    def _using_slots(self) -> set[UUID]:
        ended = {Stage.CLOSED, Stage.FINISHED}
        entries = self._entries.items()
        return {run_id for run_id, entry in entries if entry.claim.stage not in ended}


def _refusal(kept: Claim, claim_id: UUID, owner: str, pools: Collection[str]) -> Refusal | None:
    if kept.claim_id != claim_id:
        return Refusal.SUPERSEDED
    if kept.stage in _REFUSALS:
        return _REFUSALS[kept.stage]
    if pools and kept.pool not in pools:
        return Refusal.FOREIGN
    is_others = kept.stage is Stage.HELD and kept.owner != owner
    return Refusal.HELD if is_others else None


def _attempts_left(kept: Claim, *, ended: bool) -> int:
    """What the next claim on the run counts on from."""
    if ended:
        return 0
    return kept.attempt - 1 if kept.stage is Stage.OPENED else kept.attempt


def _is_held_by(kept: Claim, lease: Lease) -> bool:
    held = (kept.claim_id, kept.stage, kept.fence)
    return held == (lease.claim_id, Stage.HELD, lease.fence)


def _lease(held: Claim) -> Lease:
    return Lease(
        flow_run_id=held.flow_run_id,
        claim_id=held.claim_id,
        pool=held.pool,
        owner=held.owner,
        fence=held.fence,
        transition_id=held.transition_id,
        attempt=held.attempt,
        cancel_requested=held.cancel_requested,
        weight=held.weight,
    )
