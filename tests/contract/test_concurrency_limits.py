"""A deployment's concurrency limit, which acts at the claim."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.prefect_api import client, schemas
from dispatcher.prefect_api.schemas import OrchestrationStatus, StateType
from dispatcher.testing import prefect_objects

REACHED = "Deployment concurrency limit reached."


def claim(prefect: client.PrefectClient, flow_run: schemas.FlowRun) -> schemas.OrchestrationResult:
    return prefect.set_flow_run_state(
        flow_run.id, schemas.StateProposal(type=StateType.PENDING, name="Pending")
    )


def test_a_claim_takes_a_slot_and_keeps_its_lease(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(pool.name, concurrency_limit=1)
    flow_run = objects.run(deployment)
    claimed = claim(prefect, flow_run)
    assert claimed.state is not None
    lease = claimed.state.state_details.deployment_concurrency_lease_id
    assert lease is not None
    assert objects.used_slots(deployment.id) == 1
    for state_type, name in ((StateType.PENDING, "Submitting"), (StateType.RUNNING, None)):
        result = objects.propose(flow_run.id, state_type, name)
        assert result.state is not None
        assert result.state.state_details.deployment_concurrency_lease_id == lease


def test_a_full_deployment_lets_the_next_run_wait(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(pool.name, concurrency_limit=1)
    first, second = objects.run(deployment), objects.run(deployment)
    claim(prefect, first)
    result = claim(prefect, second)
    assert (result.status, result.reason) == (OrchestrationStatus.REJECT, REACHED)
    assert result.state is not None
    assert (result.state.type, result.state.name) == (
        StateType.SCHEDULED,
        "AwaitingConcurrencySlot",
    )
    again = result.state.state_details.scheduled_time
    assert again is not None
    assert timedelta(seconds=15) < again - datetime.now(UTC) < timedelta(seconds=31)
    now = datetime.now(UTC)
    assert prefect.get_scheduled_flow_runs(pool.name, scheduled_before=now) == []
    (row,) = prefect.get_scheduled_flow_runs(pool.name)
    assert (row.flow_run.id, row.flow_run.state_name) == (second.id, "AwaitingConcurrencySlot")


def test_a_full_deployment_cancels_the_next_run_if_it_is_set_to(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(
        pool.name,
        concurrency_limit=1,
        concurrency_options={"collision_strategy": "CANCEL_NEW"},
    )
    first, second = objects.run(deployment), objects.run(deployment)
    claim(prefect, first)
    result = claim(prefect, second)
    assert (result.status, result.reason) == (OrchestrationStatus.REJECT, REACHED)
    assert result.state is not None
    assert (result.state.type, result.state.message) == (StateType.CANCELLED, REACHED)


@pytest.mark.parametrize(
    ("path", "used"),
    [
        ([(StateType.RUNNING, None), (StateType.COMPLETED, None)], 0),
        ([(StateType.CRASHED, None)], 0),
        ([(StateType.SCHEDULED, "AwaitingRetry")], 0),
        ([(StateType.CANCELLING, None)], 1),
        ([(StateType.CANCELLING, None), (StateType.CANCELLED, None)], 0),
    ],
    ids=["completed", "crashed", "rescheduled", "cancelling", "cancelled"],
)
def test_a_slot_is_given_back_at_the_end(
    path: list[tuple[StateType, str | None]],
    used: int,
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(pool.name, concurrency_limit=1)
    flow_run = objects.run(deployment)
    claim(prefect, flow_run)
    for state_type, name in path:
        objects.propose(flow_run.id, state_type, name)
    assert objects.used_slots(deployment.id) == used


def test_a_forced_end_gives_the_slot_back(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(pool.name, concurrency_limit=1)
    flow_run = objects.run(deployment)
    claim(prefect, flow_run)
    objects.force(flow_run.id, StateType.CANCELLED)
    assert objects.used_slots(deployment.id) == 0
    assert claim(prefect, objects.run(deployment)).status is OrchestrationStatus.ACCEPT


def test_a_retry_in_its_own_process_keeps_the_slot(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(pool.name, concurrency_limit=1)
    flow_run = objects.run(deployment, empirical_policy={"retries": 1, "retry_delay": 0})
    claim(prefect, flow_run)
    objects.propose(flow_run.id, StateType.RUNNING)
    objects.propose(flow_run.id, StateType.FAILED)
    assert objects.used_slots(deployment.id) == 1
