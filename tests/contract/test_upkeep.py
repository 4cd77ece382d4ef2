"""Routes that the dispatcher does not use itself, but the tests of its users do."""

from __future__ import annotations

from typing import Any

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas, transport
from dispatcher.prefect_api.schemas import OrchestrationStatus, StateType
from dispatcher.testing import prefect_objects

QUEUE = "/work_pools/{pool}/queues/{queue}"
VARIABLE = "/variables/name/{name}"


def test_pools_are_listed_with_their_slots(
    api: transport.Transport,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    objects.change_pool(pool.name, concurrency_limit=3)
    objects.run(deployment, state={"type": "RUNNING"})
    body = {"limit": 200}
    rows = {row["name"]: row for row in api.request("POST", "/work_pools/filter", json=body)}
    assert rows[pool.name]["active_slots"] == 1
    row = api.request("GET", "/work_pools/{pool}", names={"pool": pool.name})
    assert (row["concurrency_limit"], row["active_slots"]) == (3, 1)


def test_a_pool_may_be_created_paused(objects: prefect_objects.PrefectObjects) -> None:
    pool = objects.pool(is_paused=True)
    assert (pool.is_paused, pool.status) == (True, "PAUSED")


def test_queues_are_moved_paused_and_deleted(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    for name in ("second", "third"):
        objects.queue(pool.name, name, concurrency_limit=5)
    flow_run = objects.run(deployment, work_queue_name="third", state={"type": "RUNNING"})

    objects.change_queue(pool.name, "third", priority=1, is_paused=True)
    queues = prefect.read_work_queues(pool.name)
    assert [(queue.name, queue.is_paused) for queue in queues] == [
        ("third", True),
        ("default", False),
        ("second", False),
    ]
    names = {"pool": pool.name, "queue": "third"}
    assert prefect.transport.request("GET", QUEUE, names=names)["active_slots"] == 1

    prefect.transport.request("DELETE", QUEUE, names=names)
    assert [queue.name for queue in prefect.read_work_queues(pool.name)] == ["default", "second"]
    assert prefect.read_flow_run(flow_run.id).work_pool_name is None
    with pytest.raises(errors.ObjectNotFound):
        prefect.transport.request("DELETE", QUEUE, names=names)


def test_workers_are_deleted(prefect: client.PrefectClient, pool: schemas.WorkPool) -> None:
    prefect.send_worker_heartbeat(pool.name, "w", 30)
    route, names = "/work_pools/{pool}/workers/{worker}", {"pool": pool.name, "worker": "w"}
    prefect.transport.request("DELETE", route, names=names)
    assert prefect.read_workers(pool.name) == []
    with pytest.raises(errors.ObjectNotFound, match="Worker not found"):
        prefect.transport.request("DELETE", route, names=names)


def test_variables_are_changed_and_deleted(
    prefect: client.PrefectClient, objects: prefect_objects.PrefectObjects
) -> None:
    name = prefect_objects.new_name("variable")
    objects.variable(name, 1)
    prefect.transport.request("PATCH", VARIABLE, names={"name": name}, json={"value": [2]})
    changed = prefect.read_variable(name)
    assert changed is not None
    assert changed.value == [2]
    prefect.transport.request("DELETE", VARIABLE, names={"name": name})
    assert prefect.read_variable(name) is None
    with pytest.raises(errors.ObjectNotFound, match="Variable not found"):
        prefect.transport.request("DELETE", VARIABLE, names={"name": name})


def test_runs_are_counted_and_changed(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment)
    objects.run_without_deployment(work_pool_name=pool.name, work_queue_name="default")
    wanted = schemas.FlowRunFilter(work_pool_names=[pool.name]).to_body()
    assert prefect.transport.request("POST", "/flow_runs/count", json=wanted) == 2
    prefect.transport.request(
        "PATCH",
        "/flow_runs/{id}",
        names={"id": str(flow_run.id)},
        json={"name": "renamed", "job_variables": {"a": 1}, "tags": ["t"]},
    )
    changed = prefect.read_flow_run(flow_run.id)
    assert (changed.name, changed.job_variables, changed.tags) == ("renamed", {"a": 1}, ("t",))
    assert changed.parameters == flow_run.parameters


def test_a_deployment_created_again_keeps_its_id(
    objects: prefect_objects.PrefectObjects, pool: schemas.WorkPool
) -> None:
    first = objects.deployment(pool.name, flow="shared flow", name="d " + pool.name)
    again = objects.deployment(
        pool.name, flow="shared flow", name=first.name, entrypoint="other.py:f"
    )
    assert (again.id, again.entrypoint) == (first.id, "other.py:f")


def test_a_queue_for_a_run_needs_a_deployment_with_a_pool(
    objects: prefect_objects.PrefectObjects,
) -> None:
    flow = objects.flow()
    row = objects.client.transport.request(
        "POST", "/deployments/", json={"name": "no pool", "flow_id": str(flow.id)}
    )
    deployment = schemas.Deployment.model_validate(row)
    assert deployment.work_pool_name is None
    assert objects.run(deployment).work_queue_id is None
    with pytest.raises(errors.RequestRefused, match="Cannot create flow run in work queue q"):
        objects.run(deployment, work_queue_name="q")


def test_a_deployment_without_a_limit_has_no_slots(
    objects: prefect_objects.PrefectObjects, pool: schemas.WorkPool
) -> None:
    deployment = objects.deployment(pool.name)
    with pytest.raises(errors.ObjectNotFound):
        objects.used_slots(deployment.id)


PAUSE: dict[str, Any] = {"pause_key": "k"}
SUSPEND: dict[str, Any] = {"pause_reschedule": True}


def test_a_pause_fires_once(
    objects: prefect_objects.PrefectObjects, shared_deployment: schemas.Deployment
) -> None:
    flow_run = objects.run(shared_deployment, state={"type": "RUNNING"})
    objects.propose(flow_run.id, StateType.PAUSED, **PAUSE)
    objects.propose(flow_run.id, StateType.RUNNING)
    again = objects.propose(flow_run.id, StateType.PAUSED, **PAUSE)
    assert (again.status, again.reason) == (
        OrchestrationStatus.REJECT,
        "This pause has already fired.",
    )


def test_only_runs_of_deployments_are_suspended_and_resumed(
    objects: prefect_objects.PrefectObjects,
) -> None:
    running = objects.run_without_deployment(state={"type": "RUNNING"})
    suspend = objects.propose(running.id, StateType.PAUSED, "Suspended", **SUSPEND)
    assert (suspend.status, suspend.reason) == (
        OrchestrationStatus.ABORT,
        "Cannot suspend flows without a deployment.",
    )
    objects.force(running.id, StateType.PAUSED, "Suspended", **SUSPEND)
    resume = objects.propose(running.id, StateType.SCHEDULED, "Resuming")
    assert (resume.status, resume.reason) == (
        OrchestrationStatus.REJECT,
        "Cannot reschedule a resuming flow run without a deployment.",
    )


def test_a_resumed_run_is_cancelled_at_once(
    objects: prefect_objects.PrefectObjects, shared_deployment: schemas.Deployment
) -> None:
    flow_run = objects.run(shared_deployment)
    objects.client.update_infrastructure_pid(flow_run.id, "host:1")
    objects.force(flow_run.id, StateType.SCHEDULED, "Resuming")
    cancel = objects.propose(flow_run.id, StateType.CANCELLING)
    assert cancel.state is not None
    assert cancel.state.type is StateType.CANCELLED


def test_a_claim_beyond_a_limit_of_zero_is_aborted(
    objects: prefect_objects.PrefectObjects, pool: schemas.WorkPool
) -> None:
    deployment = objects.deployment(pool.name, concurrency_limit=1)
    objects.client.transport.request(
        "PATCH",
        "/v2/concurrency_limits/deployment:{id}",
        names={"id": str(deployment.id)},
        json={"limit": 0},
    )
    claim = objects.propose(objects.run(deployment).id, StateType.PENDING)
    assert claim.status is OrchestrationStatus.ABORT
    assert claim.reason is not None
    assert claim.reason.startswith("The deployment concurrency limit is 0.")
