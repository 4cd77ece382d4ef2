"""Deciding what becomes of claims and runs that nobody takes care of any more."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from dispatcher.ledger import claims
from dispatcher.planning import claiming
from dispatcher.prefect_api import schemas

Stage = claims.Stage

# Seconds untouched after which a claim is looked into.
OPENED_SECONDS = 20.0  # the poller has asked Prefect, or died before it could
PENDING_SECONDS = 10.0  # there was a free slot for it, so its task begins within a second
# A holder stops what may be started again once its lease is over; this is its time to do so.
HOLDER_MARGIN_SECONDS = 8.0
# So many looks in a row are missed only if the ledger, or the schedule, was away.
MISSED_LOOKS = 3
MAX_RESENDS = 2


@dataclass(frozen=True)
class Limits:
    """How long a claim may stay untouched, and how often its run may be started again.

    ``recover_interval`` is the time in seconds between two looks.
    """

    lease_seconds: float
    infra_retries: int
    recover_interval: float = 5.0

    def untouched(self, stage: Stage) -> float:
        """The longest time in seconds that a claim may stay as it is in a stage."""
        return {
            Stage.OPENED: OPENED_SECONDS,
            Stage.PENDING: PENDING_SECONDS,
            Stage.HELD: self.lost_lease_seconds,
        }.get(stage, 0.0)

    @property
    def gap_seconds(self) -> float:
        """How long a pause between two looks may be without being noted as one."""
        return max(self.lease_seconds, MISSED_LOOKS * self.recover_interval)

    @property
    def lost_lease_seconds(self) -> float:
        """How long after its last sign of life a holder certainly starts nothing any more.

        Longer than any pause that goes unnoted, in which nobody could renew a lease.
        """
        return self.gap_seconds + HOLDER_MARGIN_SECONDS


@dataclass(frozen=True)
class Settle:
    """The poller went away: find out whether Prefect accepted its Pending."""

    claim: claims.Claim


@dataclass(frozen=True)
class Resend:
    """The message seems to be lost: send it again, which ``acquire`` makes harmless."""

    claim: claims.Claim


@dataclass(frozen=True)
class TakeBack:
    """Nobody took the claim, or its holder is gone: close it and decide about the run."""

    claim: claims.Claim


@dataclass(frozen=True)
class Deliver:
    """The job has ended but Prefect could not be told: tell it now."""

    claim: claims.Claim


Action = Settle | Resend | TakeBack | Deliver


def plan_recovery(
    open_claims: Iterable[claims.Claim],
    *,
    now: float,
    limits: Limits,
    leases_count: bool,
    alive: Collection[str] = (),
) -> list[Action]:
    """Choose what to do about each claim that is overdue at ``now``, by the ledger's clock.

    A message that was meant for a worker that is not among those ``alive``, the names of some that
    are, is lost for certain.
    ``leases_count`` is false for a while after the ledger was away: holders could not renew then.
    One that is known to be dead need not be waited for.
    """
    actions: list[Action] = []
    for claim in open_claims:
        is_overdue = now - claim.touched_at >= limits.untouched(claim.stage)
        if not is_overdue and not _is_stranded(claim, alive):
            continue
        if claim.stage is Stage.OPENED:
            actions.append(Settle(claim))
        elif claim.stage is Stage.PENDING:
            actions.append(TakeBack(claim) if claim.resends >= MAX_RESENDS else Resend(claim))
        elif claim.stage is Stage.FINISHED:
            actions.append(Deliver(claim))
        elif leases_count or claim.is_forfeited:
            actions.append(TakeBack(claim))
    return actions


def _is_stranded(claim: claims.Claim, alive: Collection[str]) -> bool:
    waits = claim.stage is Stage.PENDING and claim.meant_for != claims.ANYBODY
    return waits and bool(alive) and claim.meant_for not in alive


def is_unfinished(run: schemas.FlowRun) -> bool:
    """Whether someone has to take care of a run: it has a process, or is about to have one."""
    if run.state is None:
        return False
    in_process = run.state.type is schemas.StateType.SCHEDULED and run.retry_type == "in_process"
    return run.state.type in _ACTIVE or in_process or run.state.is_waiting_in_process


_ACTIVE = frozenset({schemas.StateType.PENDING, schemas.StateType.RUNNING})


def last_pending_made_by(states: Iterable[schemas.State], worker_name: str) -> bool:
    """Whether the last Pending of a run's history is the work of a dispatcher of this name."""
    made = False
    for state in states:
        if state.type is schemas.StateType.PENDING:
            made = claims.made_by(state.state_details.transition_id, worker_name)
    return made


def concerns(claim: claims.Claim, state: schemas.State | None) -> bool:
    """Whether what became of a claim decides about its run, or the run is somebody else's by now.

    A claim that nobody ever held has started nothing: a run that is not Pending by it any more
    was claimed or moved on by others.
    """
    if state is not None and state.type is schemas.StateType.PENDING:
        return claiming.owns_pending(state, transition_id=claim.transition_id)
    return claim.stage is Stage.HELD or (state is not None and state.is_cancelling)


def describe_loss(claim: claims.Claim) -> str:
    """Say to a user what became of a claim that had to be taken back."""
    if claim.is_forfeited:
        return f"Its process on worker {claim.node} died."
    if claim.stage is Stage.HELD:
        return f"Its worker {claim.node} was lost: it stopped renewing its lease on the run."
    return "No worker took the run over in time."


UNCLAIMED = "Nobody holds a claim on the run any more: its worker and its claim were lost."
