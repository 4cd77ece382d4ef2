"""Reading, finding and changing flow runs."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas
from dispatcher.prefect_api.schemas import FlowRunFilter, StateType
from dispatcher.testing import prefect_objects


def found(prefect: client.PrefectClient, wanted: FlowRunFilter) -> set[UUID]:
    return {flow_run.id for flow_run in prefect.read_flow_runs(wanted)}


def test_a_run_with_all_that_a_launch_needs(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(pool.name, parameters={"a": 1, "b": 2}, tags=["d"])
    created = objects.run(deployment, parameters={"b": 3}, tags=["r"], name="my run")
    flow_run = prefect.read_flow_run(created.id)
    assert flow_run == created
    assert flow_run.name == "my run"
    assert flow_run.flow_id == deployment.flow_id
    assert flow_run.parameters == {"a": 1, "b": 3}
    assert set(flow_run.tags) == {"d", "r"}
    assert (flow_run.work_pool_name, flow_run.work_queue_name) == (pool.name, "default")
    assert flow_run.labels["prefect.deployment.id"] == str(deployment.id)
    assert flow_run.state is not None
    assert flow_run.state.type is StateType.SCHEDULED
    assert flow_run.state_id == flow_run.state.id
    assert flow_run.job_variables == {}


def test_an_idempotency_key_gives_the_same_run(
    objects: prefect_objects.PrefectObjects, shared_deployment: schemas.Deployment
) -> None:
    key = str(uuid4())
    first = objects.run(shared_deployment, idempotency_key=key)
    assert objects.run(shared_deployment, idempotency_key=key).id == first.id


def test_an_unknown_run_is_not_found_by_any_call(prefect: client.PrefectClient) -> None:
    unknown = uuid4()
    pending = schemas.StateProposal(type=StateType.PENDING)
    for call in (
        lambda: prefect.read_flow_run(unknown),
        lambda: prefect.update_infrastructure_pid(unknown, "host:1"),
        lambda: prefect.update_flow_run_labels(unknown, {"a": "b"}),
        lambda: prefect.set_flow_run_state(unknown, pending),
    ):
        with pytest.raises(errors.ObjectNotFound) as caught:
            call()
        assert caught.value.detail in {
            "Flow run not found",
            f"Flow run with id {unknown} not found",
        }


def test_pid_and_labels_are_kept(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    prefect.update_infrastructure_pid(flow_run.id, "host:123")
    prefect.update_flow_run_labels(flow_run.id, {"mine": "x", "number": 1})
    read = prefect.read_flow_run(flow_run.id)
    assert read.infrastructure_pid == "host:123"
    assert read.labels == {**flow_run.labels, "mine": "x", "number": 1}


def test_conditions_of_a_filter(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    queue = objects.queue(pool.name)
    pending = objects.run(deployment, state={"type": "PENDING"}).id
    running = objects.run(deployment, state={"type": "RUNNING"}, work_queue_name=queue.name).id
    mine = (pool.name,)
    assert found(prefect, FlowRunFilter(work_pool_names=mine)) == {pending, running}
    assert found(prefect, FlowRunFilter(ids=[pending, uuid4()])) == {pending}
    assert found(prefect, FlowRunFilter(not_ids=[pending], work_pool_names=mine)) == {running}
    assert found(prefect, FlowRunFilter(state_types=[StateType.PENDING], work_pool_names=mine)) == {
        pending
    }
    assert found(prefect, FlowRunFilter(state_names=["Running"], work_pool_names=mine)) == {running}
    assert found(prefect, FlowRunFilter(work_pool_names=mine, work_queue_names=[queue.name])) == {
        running
    }
    assert found(prefect, FlowRunFilter(work_pool_names=["no such pool"])) == set()


def test_cancel_requests_of_new_and_old_clients_in_one_filter(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    new = objects.run(deployment, state={"type": "CANCELLING", "name": "Stopping"}).id
    old = objects.run(deployment, state={"type": "CANCELLED", "name": "Cancelling"}).id
    objects.run(deployment, state={"type": "CANCELLED"})
    objects.run(deployment, state={"type": "RUNNING"})

    def ask(*, states_any: bool) -> set[UUID]:
        wanted = FlowRunFilter(
            state_types=[StateType.CANCELLING],
            state_names=["Cancelling"],
            states_any=states_any,
            work_pool_names=[pool.name],
        )
        return found(prefect, wanted)

    assert ask(states_any=True) == {new, old}
    assert ask(states_any=False) == set()


def test_pages_and_order(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    runs = [objects.run(deployment).id for _ in range(3)]
    mine = FlowRunFilter(work_pool_names=[pool.name])

    def page(limit: int, offset: int = 0) -> list[UUID]:
        rows = prefect.read_flow_runs(
            mine, limit=limit, offset=offset, sort="EXPECTED_START_TIME_ASC"
        )
        return [flow_run.id for flow_run in rows]

    assert page(3) == runs
    assert page(1, offset=1) == runs[1:2]
    assert page(0) == []
    by_id = prefect.read_flow_runs(mine)
    assert [row.id.hex for row in by_id] == sorted((item.hex for item in runs), reverse=True)
    with pytest.raises(errors.RequestRefused, match="must be less than or equal to 200"):
        prefect.read_flow_runs(mine, limit=201)


def test_a_deleted_deployment_takes_its_scheduled_runs_along(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    scheduled = objects.run(deployment)
    pending = objects.run(deployment, state={"type": "PENDING"})
    failed = objects.run(deployment, state={"type": "FAILED"})
    objects.delete_deployment(deployment.id)
    with pytest.raises(errors.ObjectNotFound) as caught:
        prefect.read_deployment(deployment.id)
    assert caught.value.detail == "Deployment not found"
    with pytest.raises(errors.ObjectNotFound):
        prefect.read_flow_run(scheduled.id)
    assert prefect.read_flow_run(pending.id).deployment_id == deployment.id
    claim = objects.propose(failed.id, StateType.PENDING)
    assert (claim.status, claim.reason) == (
        schemas.OrchestrationStatus.ABORT,
        "Deployment not found.",
    )


def test_a_deleted_run_is_gone(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment, state={"type": "RUNNING"})
    objects.delete_run(flow_run.id)
    with pytest.raises(errors.ObjectNotFound):
        prefect.read_flow_run(flow_run.id)
    assert found(prefect, FlowRunFilter(ids=[flow_run.id])) == set()
