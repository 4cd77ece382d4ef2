"""Deciding which runs to claim, and which claims Prefect granted."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from uuid import UUID

from dispatcher.api import schemas

StateType = schemas.StateType
Status = schemas.OrchestrationStatus


def plan_claims(
    rows: Sequence[schemas.ScheduledFlowRun], *, claimed: Collection[UUID], free_slots: int
) -> list[schemas.FlowRun]:
    """Choose the runs to claim from a poll, in the server's order (queue priority, then time)."""
    chosen: dict[UUID, schemas.FlowRun] = {}
    for row in rows:
        run = row.flow_run
        if len(chosen) >= free_slots:
            break
        if run.id not in claimed and _may_be_claimed(run):
            chosen.setdefault(run.id, run)
    return list(chosen.values())


def _may_be_claimed(run: schemas.FlowRun) -> bool:
    # A run whose own engine waits to retry is that engine's, not ours.
    return run.state_type is StateType.SCHEDULED and run.retry_type != "in_process"


def is_granted(result: schemas.OrchestrationResult, *, transition_id: UUID) -> bool:
    """Whether a Pending proposal made the run ours: accepted, or already ours by its id."""
    if result.status is Status.ACCEPT:
        return True
    return owns_pending(result.state, transition_id=transition_id)


def owns_pending(state: schemas.State | None, *, transition_id: UUID) -> bool:
    """Whether a state is the Pending that a claim with this transition id made."""
    return (
        state is not None
        and state.type is StateType.PENDING
        and state.state_details.transition_id == transition_id
    )
