"""States, runs and answers of Prefect as the decisions get them."""

from __future__ import annotations

from uuid import UUID

from hypothesis import strategies as st

from dispatcher.prefect_api import schemas

S = schemas.StateType
Status = schemas.OrchestrationStatus

MINE, OTHER = UUID(int=1), UUID(int=2)  # transition ids
RUN = UUID(int=9)


def state(type_: S, name: str = "", transition_id: UUID | None = None) -> schemas.State:
    details = schemas.StateDetails(transition_id=transition_id)
    return schemas.State(type=type_, name=name, state_details=details)


RUN_VALUES: dict[str, object] = {"flow_id": UUID(int=8), "work_queue_id": UUID(int=7)}


def flow_run(run_id: UUID = RUN, **values: object) -> schemas.FlowRun:
    return schemas.FlowRun.model_validate({**RUN_VALUES, "id": run_id, **values})


def run_in(now: schemas.State | None, retry_type: str | None = None) -> schemas.FlowRun:
    """A run in a state, with a policy on who retries it."""
    policy = {"retry_type": retry_type} if retry_type else {}
    return flow_run(state=now, empirical_policy=policy)


def row(run_id: UUID, type_: S = S.SCHEDULED, **values: object) -> schemas.ScheduledFlowRun:
    return schemas.ScheduledFlowRun(
        work_pool_id=UUID(int=6),
        work_queue_id=UUID(int=7),
        flow_run=flow_run(run_id, state_type=type_, **values),
    )


def result(
    status: Status,
    now: schemas.State | None = None,
    *,
    run_id: UUID = RUN,
    reason: str | None = None,
) -> schemas.OrchestrationResult:
    return schemas.OrchestrationResult(status=status, state=now, reason=reason, flow_run_id=run_id)


CANCELLING = state(S.CANCELLING, "Cancelling")
CANCELLING_BY_2X = state(S.CANCELLED, "Cancelling")
CANCELLED = state(S.CANCELLED, "Cancelled")
PENDING = state(S.PENDING, "Pending", MINE)
PENDING_OF_ANOTHER = state(S.PENDING, "Pending", OTHER)
SCHEDULED = state(S.SCHEDULED, "Scheduled")
RUNNING = state(S.RUNNING, "Running")
COMPLETED = state(S.COMPLETED, "Completed")
CRASHED = state(S.CRASHED, "Crashed")
SUSPENDED = schemas.State(
    type=S.PAUSED, name="Suspended", state_details=schemas.StateDetails(pause_reschedule=True)
)
PAUSED = state(S.PAUSED, "Paused")

ANY_STATE = st.builds(
    state,
    st.sampled_from(S),
    st.sampled_from(["", "Cancelling", "Cancelled", "Pending"]),
    st.sampled_from([None, MINE, OTHER]),
)
ANY_RUN = st.builds(
    run_in, st.none() | ANY_STATE, st.sampled_from([None, "in_process", "reschedule"])
)
