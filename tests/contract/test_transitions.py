"""Which states a server lets a run take: every pair, on the fake as on a real server."""

from __future__ import annotations

from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatcher.prefect_api import client, schemas
from dispatcher.prefect_api.schemas import OrchestrationStatus, StateType
from dispatcher.testing import prefect_objects

SUSPENDED = {"pause_reschedule": True}

# name: type, state name, details; with a pid or without
STATES: dict[str, tuple[StateType, str | None, dict[str, Any]]] = {
    "Scheduled": (StateType.SCHEDULED, None, {}),
    "Scheduled+pid": (StateType.SCHEDULED, None, {}),
    "Pending": (StateType.PENDING, None, {}),
    "Submitting": (StateType.PENDING, "Submitting", {}),
    "Running": (StateType.RUNNING, None, {}),
    "Paused": (StateType.PAUSED, None, {}),
    "Suspended": (StateType.PAUSED, "Suspended", SUSPENDED),
    "Cancelling": (StateType.CANCELLING, None, {}),
    "Completed": (StateType.COMPLETED, None, {}),
    "Failed": (StateType.FAILED, None, {}),
    "Crashed": (StateType.CRASHED, None, {}),
    "Cancelled": (StateType.CANCELLED, None, {}),
    "AwaitingRetry": (StateType.SCHEDULED, "AwaitingRetry", {}),
}

TARGETS = (
    "Pending",
    "Submitting",
    "Running",
    "Crashed",
    "Cancelling",
    "Cancelled",
    "Failed",
    "Completed",
    "AwaitingRetry",
    "Suspended",
)

# a: accepted, r: rejected, x: aborted, c: rejected, but the run becomes Cancelled
MATRIX = {
    "Scheduled": "aaaacaaaar",
    "Scheduled+pid": "aaaaaaaaar",
    "Pending": "xaaaaaaaar",
    "Submitting": "xxaaaaaaar",
    "Running": "xxaaaaaaaa",
    "Paused": "rraaaaaaar",
    "Suspended": "rraacaaaar",
    "Cancelling": "rrrrrarrrr",
    "Completed": "aaaxxaaaax",
    "Failed": "aaaxxaaaax",
    "Crashed": "aaaxxaaaax",
    "Cancelled": "xxaxxaaaax",
}

CELLS = [
    (before, after, expected)
    for before, row in MATRIX.items()
    for after, expected in zip(TARGETS, row, strict=True)
]

VERDICTS = {
    "a": OrchestrationStatus.ACCEPT,
    "r": OrchestrationStatus.REJECT,
    "x": OrchestrationStatus.ABORT,
    "c": OrchestrationStatus.REJECT,
}


def run_in(
    state: str, objects: prefect_objects.PrefectObjects, deployment: schemas.Deployment
) -> UUID:
    """A new run that is in this state."""
    state_type, name, details = STATES[state]
    flow_run = objects.run(
        deployment, state={"type": state_type.value, "name": name, "state_details": details}
    )
    if state == "Scheduled+pid":
        objects.client.update_infrastructure_pid(flow_run.id, "host:123")
    return flow_run.id


@pytest.mark.parametrize(("before", "after", "expected"), CELLS)
def test_matrix(
    before: str,
    after: str,
    expected: str,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run_id = run_in(before, objects, shared_deployment)
    target_type, target_name, details = STATES[after]

    result = objects.propose(flow_run_id, target_type, target_name, **details)

    assert result.state is not None
    assert result.status is VERDICTS[expected]
    types = {"a": target_type, "c": StateType.CANCELLED}
    assert result.state.type is types.get(expected, STATES[before][0])


@pytest.mark.parametrize(
    ("before", "after", "answer"),
    [
        (
            "Pending",
            "Pending",
            "ABORT: This run is in a PENDING state and cannot transition to a PENDING state.",
        ),
        ("Completed", "Crashed", "ABORT: Run is already in terminal state COMPLETED."),
        (
            "Cancelling",
            "Crashed",
            "REJECT: Cannot transition flows that are cancelling to a state other than Cancelled.",
        ),
        (
            "Scheduled",
            "Cancelling",
            "REJECT: Scheduled flow run has no infrastructure to terminate.",
        ),
        (
            "Suspended",
            "Cancelling",
            "REJECT: Suspended flow run has no infrastructure to terminate.",
        ),
        (
            "Paused",
            "Pending",
            (
                "REJECT: This run cannot transition to the StateType.PENDING state from the "
                "StateType.PAUSED state."
            ),
        ),
        (
            "Pending",
            "Suspended",
            "REJECT: Cannot suspend flows that are not currently running.",
        ),
    ],
)
def test_reasons_are_the_servers_words(
    before: str,
    after: str,
    answer: str,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    target_type, name, details = STATES[after]
    flow_run_id = run_in(before, objects, shared_deployment)
    result = objects.propose(flow_run_id, target_type, name, **details)
    assert f"{result.status.value}: {result.reason}" == answer


@pytest.mark.parametrize(
    ("before", "after"),
    [("Completed", "Crashed"), ("Pending", "Pending"), ("Cancelling", "Crashed")],
)
def test_force_passes_the_rules(
    before: str,
    after: str,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run_id = run_in(before, objects, shared_deployment)
    result = objects.force(flow_run_id, STATES[after][0])
    assert result.status is OrchestrationStatus.ACCEPT


def test_force_still_cancels_at_once_what_has_no_infrastructure(
    objects: prefect_objects.PrefectObjects, shared_deployment: schemas.Deployment
) -> None:
    flow_run = objects.run(shared_deployment)
    result = objects.force(flow_run.id, StateType.CANCELLING)
    assert result.status is OrchestrationStatus.REJECT
    assert result.state is not None
    assert result.state.type is StateType.CANCELLED


def stored_result(prefect: client.PrefectClient, flow_run_id: UUID) -> None:
    state = {"type": "COMPLETED", "data": {"type": "reference", "storage_key": "k"}}
    prefect.transport.request(
        "POST",
        "/flow_runs/{id}/set_state",
        names={"id": str(flow_run_id)},
        json={"state": state, "force": True},
    )


def test_a_stored_result_protects_a_completed_run(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    stored_result(prefect, flow_run.id)
    claim = objects.propose(flow_run.id, StateType.PENDING)
    assert (claim.status, claim.reason) == (
        OrchestrationStatus.REJECT,
        "Run is already COMPLETED.",
    )
    overwrite = objects.force(flow_run.id, StateType.COMPLETED)
    assert overwrite.status is OrchestrationStatus.REJECT


def test_a_run_without_deployment_is_not_rescheduled_after_its_end(
    objects: prefect_objects.PrefectObjects,
) -> None:
    flow_run = objects.run_without_deployment(state={"type": "FAILED"})
    result = objects.propose(flow_run.id, StateType.SCHEDULED)
    assert (result.status, result.reason) == (
        OrchestrationStatus.ABORT,
        "Cannot reschedule a run without an associated deployment.",
    )


def test_running_too_early_has_to_wait(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2099-01-01T00:00:00Z"}}
    flow_run = objects.run(shared_deployment, state=state)
    claim = prefect.set_flow_run_state(flow_run.id, schemas.StateProposal(type=StateType.PENDING))
    assert claim.status is OrchestrationStatus.ACCEPT
    assert claim.state is not None
    assert claim.state.state_details.scheduled_time is not None

    result = prefect.set_flow_run_state(flow_run.id, schemas.StateProposal(type=StateType.RUNNING))

    assert (result.status, result.reason) == (
        OrchestrationStatus.WAIT,
        "Scheduled time is in the future",
    )
    assert result.delay_seconds is not None
    assert result.delay_seconds > 1e9


def test_a_failed_run_with_retries_left_waits_to_retry_in_its_process(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment, empirical_policy={"retries": 1, "retry_delay": 0})
    objects.propose(flow_run.id, StateType.RUNNING)
    first = objects.propose(flow_run.id, StateType.FAILED)
    assert (first.status, first.reason) == (OrchestrationStatus.REJECT, "Retrying")
    assert first.state is not None
    assert first.state.name == "AwaitingRetry"
    waiting = prefect.read_flow_run(flow_run.id)
    assert (waiting.retry_type, waiting.run_count) == ("in_process", 1)

    objects.propose(flow_run.id, StateType.RUNNING)
    second = objects.propose(flow_run.id, StateType.FAILED)
    assert second.status is OrchestrationStatus.ACCEPT
    assert prefect.read_flow_run(flow_run.id).retry_type is None


def test_a_crash_is_final_whatever_the_retries(
    objects: prefect_objects.PrefectObjects, shared_deployment: schemas.Deployment
) -> None:
    flow_run = objects.run(shared_deployment, empirical_policy={"retries": 2, "retry_delay": 0})
    objects.propose(flow_run.id, StateType.RUNNING)
    assert objects.propose(flow_run.id, StateType.CRASHED).status is OrchestrationStatus.ACCEPT


def test_a_rerun_from_a_terminal_state_is_polled_again(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment, state={"type": "FAILED"})
    objects.propose(flow_run.id, StateType.SCHEDULED, "AwaitingRetry")
    rows = prefect.get_scheduled_flow_runs(deployment.work_pool_name or "")
    assert [row.flow_run.id for row in rows] == [flow_run.id]
    assert rows[0].flow_run.retry_type == "reschedule"


@pytest.mark.parametrize(
    ("before", "reason"),
    [
        ("Running", "Only scheduled flows can be marked late."),
        ("Late", "This flow run is already marked late."),
    ],
)
def test_only_scheduled_runs_become_late_and_only_once(
    before: str,
    reason: str,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    if before == "Late":
        objects.propose(flow_run.id, StateType.SCHEDULED, "Late")
    else:
        objects.force(flow_run.id, StateType.RUNNING)
    result = objects.propose(flow_run.id, StateType.SCHEDULED, "Late")
    assert (result.status, result.reason) == (OrchestrationStatus.REJECT, reason)


def test_the_history_tells_every_state_in_order(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    for state_type in (StateType.PENDING, StateType.RUNNING, StateType.COMPLETED):
        objects.propose(flow_run.id, state_type)
    objects.propose(flow_run.id, StateType.CRASHED)  # aborted: leaves no trace

    names = [state.name for state in objects.states(flow_run.id)]
    assert names == ["Scheduled", "Pending", "Running", "Completed"]
    finished = prefect.read_flow_run(flow_run.id)
    assert finished.run_count == 1
    assert finished.next_scheduled_start_time is None
    assert finished.start_time is not None
    assert finished.end_time is not None
    assert finished.start_time <= finished.end_time


def test_the_server_keeps_the_transition_id_and_the_message(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    mine = uuid4()
    proposal = schemas.StateProposal(
        type=StateType.PENDING, name="Submitting", message="hello", transition_id=mine
    )
    prefect.set_flow_run_state(flow_run.id, proposal)
    state = prefect.read_flow_run(flow_run.id).state
    assert state is not None
    assert (state.name, state.message) == ("Submitting", "hello")
    assert state.state_details.transition_id == mine
