"""Claims, leases, and what the dispatcher needs of the ledger that keeps them."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import UUID, uuid4

_MARK_BYTES = 6
# In place of a time, when a claim was touched whose holder is known to be dead.
FORFEITED_AT = 0.0
# In place of a Celery worker: a claim whose message any of them may take.
ANYBODY = ""


class Stage(StrEnum):
    """Where a claim is on its way."""

    OPENED = "opened"  # Pending is about to be proposed
    PENDING = "pending"  # Prefect accepted it; the task is on its way
    HELD = "held"  # an execute task holds the lease
    FINISHED = "finished"  # the job has ended, and Prefect does not know yet how
    CLOSED = "closed"


class Refusal(StrEnum):
    """Why a lease was not granted."""

    MISSING = "missing"
    SUPERSEDED = "superseded"
    CLOSED = "closed"
    HELD = "held"
    FINISHED = "finished"
    FOREIGN = "foreign"  # its pool is none of those that the worker serves


class Renewal(StrEnum):
    """What became of a lease."""

    HELD = "held"
    LOST = "lost"
    MISSING = "missing"


class CancelResult(StrEnum):
    """What a request to cancel met."""

    MARKED = "marked"
    WAITING = "waiting"
    CLOSED = "closed"
    ABSENT = "absent"


@dataclass(frozen=True)
class NewClaim:
    """A claim as it is opened and as its message names it."""

    flow_run_id: UUID
    claim_id: UUID


@dataclass(frozen=True)
class Claim:
    """The right to start one flow run once. Its id is the id of the Celery task.

    Times are seconds since the epoch by the ledger's clock. ``touched_at`` is when someone last
    showed that he takes care of the claim; ``attempt`` counts the claims that Prefect granted on
    this run since it last ended. ``meant_for`` is the Celery worker whose slots it takes, as many
    as its ``weight``. ``memory`` is how many bytes its job used when the lease was renewed.
    """

    flow_run_id: UUID
    claim_id: UUID
    pool: str
    transition_id: UUID
    stage: Stage
    attempt: int
    opened_at: float
    touched_at: float
    owner: str = ""
    fence: int = 0
    resends: int = 0
    cancel_requested: bool = False
    outcome: str = ""
    meant_for: str = ANYBODY
    weight: int = 1
    memory: int | None = None

    @property
    def new(self) -> NewClaim:
        """What the claim's message carries."""
        return NewClaim(self.flow_run_id, self.claim_id)

    @property
    def is_forfeited(self) -> bool:
        """Whether the holder is known to be dead."""
        return self.touched_at == FORFEITED_AT

    @property
    def adopts(self) -> bool:
        """Whether the claim is on the job that its run has already."""
        return self.claim_id == self.transition_id

    @property
    def node(self) -> str:
        """The Celery worker that holds or held the lease."""
        return node_of(self.owner)


@dataclass(frozen=True)
class Lease:
    """The part of a claim that an execute task holds; ``fence`` only ever grows.

    ``owner`` is unique to one delivery of the task: ``<worker>#<uuid>``.
    """

    flow_run_id: UUID
    claim_id: UUID
    pool: str
    owner: str
    fence: int
    transition_id: UUID
    attempt: int
    cancel_requested: bool = False
    weight: int = 1

    @property
    def adopts(self) -> bool:
        """Whether the lease is on the job that the run has already."""
        return self.claim_id == self.transition_id


class Ledger(Protocol):
    """What the dispatcher needs of a ledger. Every operation may be repeated."""

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
        """Open those claims that find free slots of a worker and no open claim on their run.

        ``slots`` are those of the Celery worker ``node``; each claim takes ``weight`` of them.
        """

    def accept(self, claim: NewClaim) -> int:
        """Note that Prefect accepted Pending.

        Returns which attempt at its run this is; 0 if the claim is not open any more.
        """

    def resend(self, claim: NewClaim, *, node: str = ANYBODY) -> bool:
        """Note that a claim's message is sent again; false if it does not wait for its task.

        The claim takes slots of the worker ``node`` from now on, whether they are free or not.
        """

    def acquire(
        self, claim: NewClaim, *, owner: str, pools: Collection[str] = ()
    ) -> Lease | Refusal:
        """Take the lease, with the slots of the owner's worker.

        ``pools`` are those that it serves; all if empty.
        """

    def renew(self, lease: Lease, *, memory: int | None = None) -> tuple[Renewal, bool]:
        """Renew a lease; the second value tells whether a cancel was asked for.

        ``memory`` is how many bytes the job uses now, if that is known.
        """

    def restore(self, lease: Lease) -> bool:
        """Bring a lease back into a ledger that has lost it; false if somebody else has one."""

    def request_cancel(self, flow_run_id: UUID) -> tuple[CancelResult, UUID | None]:
        """Ask the holder to stop, or close a claim that nobody holds."""

    def finish(self, lease: Lease, outcome: str) -> bool:
        """Keep an outcome that Prefect could not be told, and free the slot."""

    def close(self, claim: NewClaim, *, fence: int | None = None, failed: bool = False) -> bool:
        """Close a claim; a held one only with its fence.

        One that has ``failed`` counts as an attempt; otherwise a run that was held begins anew.
        """

    def expire(self, claim: Claim, *, untouched_seconds: float) -> bool:
        """Close a claim that is still as it was read and has been untouched so long."""

    def forfeit(self, claim: NewClaim, *, node: str) -> str | None:
        """Note that a claim's holder on a Celery worker is dead: its lease is over now.

        Returns the claim's pool; ``None`` if it is not held there.
        """

    def get(self, flow_run_id: UUID) -> Claim | None:
        """Read a claim, open or closed."""

    def open_run_ids(self) -> set[UUID]:
        """The runs whose claims use a slot, of every pool."""

    def used_slots(self, nodes: Sequence[str]) -> dict[str, int]:
        """How many slots of each worker are taken by claims."""

    def open_claims(self) -> list[Claim]:
        """Every claim that is not closed, oldest first."""

    def now(self) -> float:
        """The ledger's clock: seconds since the epoch."""


def node_of(owner: str) -> str:
    """The Celery worker of an owner."""
    return owner.rpartition("#")[0]


def new_adoption() -> UUID:
    """An id for a claim that adopts a job; it is its transition id, too, as no other claim's is."""
    return uuid4()


def new_transition_id(worker_name: str) -> UUID:
    """A fresh transition id that shows for ever which dispatcher made the transition.

    It outlives the ledger: by it a Pending run is known as ours when its claim is gone.
    """
    return UUID(bytes=_mark(worker_name) + uuid4().bytes[_MARK_BYTES:])


def made_by(transition_id: UUID | None, worker_name: str) -> bool:
    """Whether a dispatcher of this name made the transition."""
    return transition_id is not None and transition_id.bytes.startswith(_mark(worker_name))


def _mark(worker_name: str) -> bytes:
    return hashlib.sha256(worker_name.encode()).digest()[:_MARK_BYTES]
