"""Work pools, queues and workers."""

from __future__ import annotations

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas
from dispatcher.testing import prefect_objects

TEMPLATE = {
    "job_configuration": {"command": "{{ command }}", "env": "{{ env }}"},
    "variables": {
        "type": "object",
        "properties": {"command": {"type": "string"}, "env": {"type": "object"}},
    },
}


def test_a_new_pool_is_not_ready_and_has_a_default_queue(prefect: client.PrefectClient) -> None:
    name = prefect_objects.new_name("pool")
    created = prefect.create_work_pool(name, "process", TEMPLATE, "what it is for")
    assert (created.name, created.type, created.status) == (name, "process", "NOT_READY")
    assert created.base_job_template == TEMPLATE
    read = prefect.read_work_pool(name)
    assert read == created
    (queue,) = prefect.read_work_queues(name)
    assert (queue.id, queue.name, queue.priority) == (created.default_queue_id, "default", 1)


def test_names_that_need_quoting(prefect: client.PrefectClient) -> None:
    name = prefect_objects.new_name("my pool ü#?+x")
    prefect.create_work_pool(name, "process")
    assert prefect.read_work_pool(name).name == name
    prefect.send_worker_heartbeat(name, "w 1?#ü", 30)
    assert [worker.name for worker in prefect.read_workers(name)] == ["w 1?#ü"]
    assert prefect.read_work_queue(name, "default").name == "default"


def test_a_second_pool_of_that_name_is_refused(
    prefect: client.PrefectClient, pool: schemas.WorkPool
) -> None:
    with pytest.raises(errors.ObjectAlreadyExists) as caught:
        prefect.create_work_pool(pool.name, "process")
    assert caught.value.status_code == 409
    assert caught.value.detail == "A work pool with this name already exists."


def test_reserved_and_impossible_names(prefect: client.PrefectClient) -> None:
    with pytest.raises(errors.AuthenticationFailed, match="reserved for internal use") as caught:
        prefect.create_work_pool("Prefect-mine", "process")
    assert caught.value.status_code == 403
    with pytest.raises(errors.RequestRefused, match=r"body\.name: String should match pattern"):
        prefect.create_work_pool("a/b", "process")


def test_a_template_is_replaced_and_checked(
    prefect: client.PrefectClient, pool: schemas.WorkPool
) -> None:
    assert pool.base_job_template == {}
    prefect.update_work_pool_template(pool.name, TEMPLATE)
    assert prefect.read_work_pool(pool.name).base_job_template == TEMPLATE
    undeclared = {"job_configuration": {"a": "{{ x }}"}, "variables": {"properties": {}}}
    with pytest.raises(errors.RequestRefused, match=r"undeclared variable\(s\): x\."):
        prefect.update_work_pool_template(pool.name, undeclared)
    with pytest.raises(errors.RequestRefused, match="must contain both"):
        prefect.update_work_pool_template(pool.name, {"job_configuration": {}})


def test_an_unknown_pool_is_not_found_by_any_call(prefect: client.PrefectClient) -> None:
    for call in (
        lambda: prefect.read_work_pool("nope"),
        lambda: prefect.update_work_pool_template("nope", TEMPLATE),
        lambda: prefect.read_work_queues("nope"),
        lambda: prefect.read_workers("nope"),
        lambda: prefect.send_worker_heartbeat("nope", "w", 30),
    ):
        with pytest.raises(errors.ObjectNotFound) as caught:
            call()
        assert caught.value.detail == 'Work pool "nope" not found.'


def test_an_unknown_queue_is_not_found(
    prefect: client.PrefectClient, pool: schemas.WorkPool
) -> None:
    with pytest.raises(errors.ObjectNotFound, match=f"queue '{pool.name}/nope' not found"):
        prefect.read_work_queue(pool.name, "nope")


def test_a_queue_put_in_front_moves_the_others_back(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    objects.queue(pool.name, "second", priority=1)
    objects.queue(pool.name, "first", priority=1)
    objects.queue(pool.name, "last")
    queues = prefect.read_work_queues(pool.name)
    assert [(queue.name, queue.priority) for queue in queues] == [
        ("first", 1),
        ("second", 2),
        ("default", 3),
        ("last", 4),
    ]
    with pytest.raises(errors.ObjectAlreadyExists):
        objects.queue(pool.name, "last")


def test_a_heartbeat_brings_worker_and_pool_up(
    prefect: client.PrefectClient, pool: schemas.WorkPool
) -> None:
    assert prefect.read_workers(pool.name) == []
    prefect.send_worker_heartbeat(pool.name, "w 1", 0.4)
    prefect.send_worker_heartbeat(pool.name, "w 1", 30.4)
    (worker,) = prefect.read_workers(pool.name)
    assert (worker.name, worker.status) == ("w 1", "ONLINE")
    assert worker.heartbeat_interval_seconds == 30
    assert worker.last_heartbeat_time is not None
    assert prefect.read_work_pool(pool.name).status == "READY"


def test_a_paused_pool_stays_paused_under_heartbeats(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    objects.change_pool(pool.name, is_paused=True)
    prefect.send_worker_heartbeat(pool.name, "w", 30)
    assert prefect.read_work_pool(pool.name).status == "PAUSED"


def test_a_deleted_pool_leaves_its_runs_behind(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment)
    objects.delete_pool(pool.name)
    with pytest.raises(errors.ObjectNotFound):
        prefect.read_work_pool(pool.name)
    left = prefect.read_flow_run(flow_run.id)
    assert (left.work_queue_id, left.work_queue_name, left.work_pool_name) == (None, None, None)
    assert prefect.read_deployment(deployment.id).work_pool_name is None


def test_versions_and_health(prefect: client.PrefectClient) -> None:
    assert prefect.is_healthy()
    assert prefect.read_api_version() == "0.8.4"
    assert prefect.read_server_version().startswith("3.")
