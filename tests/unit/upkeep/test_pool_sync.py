"""The sync of a work pool: that it exists, has a template, and shows as served."""

from __future__ import annotations

import logging

import pytest

import executors
from dispatcher import errors
from dispatcher.prefect_api import client
from dispatcher.testing import prefect_api, prefect_objects
from dispatcher.upkeep import pool_sync

NAME = "a pool"
CREATE = ("POST", "/work_pools/")
READ = ("GET", "/work_pools/{pool}")
UPDATE = ("PATCH", "/work_pools/{pool}")

Objects = prefect_objects.PrefectObjects


def default_template() -> dict[str, object]:
    executor = executors.get_executor_class_from_type("process")
    assert executor is not None
    return executor.get_default_base_job_template()


def make_sync(
    api: client.PrefectClient, *, pool_type: str = "process", create: bool = True
) -> pool_sync.PoolSync:
    return pool_sync.PoolSync(
        api=api,
        worker_name="fleet",
        heartbeat_interval=30,
        pool_type=pool_type,
        create_if_not_found=create,
    )


@pytest.fixture(autouse=True)
def _log_everything(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger=pool_sync.__name__)


def test_a_pool_that_does_not_exist_is_created_with_the_default_template(
    api: client.PrefectClient, caplog: pytest.LogCaptureFixture
) -> None:
    assert make_sync(api).sync(NAME) is True
    made = api.read_work_pool(NAME)
    assert made.type == "process"
    assert made.base_job_template == default_template()
    assert caplog.messages == ["work pool 'a pool' created with type 'process'"]


def test_a_pool_that_may_not_be_created_is_said_to_be_missing(
    api: client.PrefectClient, prefect: prefect_api.FakePrefect, caplog: pytest.LogCaptureFixture
) -> None:
    assert make_sync(api, create=False).sync(NAME) is False
    assert caplog.messages == ["work pool 'a pool' does not exist and is not to be created"]
    assert prefect.requests.total() == 1


def test_a_pool_that_somebody_else_creates_in_the_same_moment_is_taken(
    prefect: prefect_api.FakePrefect, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    theirs: dict[str, object] = {"job_configuration": {}, "variables": {"properties": {}}}

    def create_first(method: str, route: str) -> None:
        if (method, route) == CREATE:
            objects.pool(NAME, base_job_template=theirs)

    api = prefect.client(on_request=create_first)
    assert make_sync(api).sync(NAME) is True
    assert api.read_work_pool(NAME).base_job_template == theirs
    assert prefect.requests[CREATE] == 2
    assert caplog.messages == []
    api.transport.close()


def test_a_pool_without_a_template_gets_the_default_one_of_its_own_type(
    api: client.PrefectClient, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    objects.pool(NAME, base_job_template={})
    assert make_sync(api, pool_type="other").sync(NAME) is True
    assert api.read_work_pool(NAME).base_job_template == default_template()
    assert caplog.messages[1:] == [
        "work pool 'a pool' had no job template; the default one was written"
    ]


def test_a_template_of_the_users_own_stays(
    api: client.PrefectClient, objects: Objects, prefect: prefect_api.FakePrefect
) -> None:
    own = {"job_configuration": {"command": "x"}, "variables": {"properties": {}}}
    objects.pool(NAME, base_job_template=own)
    make_sync(api).sync(NAME)
    assert api.read_work_pool(NAME).base_job_template == own
    assert prefect.requests[UPDATE] == 0


def test_each_sync_is_a_heartbeat_of_the_fleet(api: client.PrefectClient, objects: Objects) -> None:
    objects.pool(NAME)
    sync = make_sync(api)
    sync.sync(NAME)
    (first,) = api.read_workers(NAME)
    sync.sync(NAME)
    (second,) = api.read_workers(NAME)
    assert (second.name, second.heartbeat_interval_seconds) == ("fleet", 30)
    assert first.last_heartbeat_time is not None
    assert second.last_heartbeat_time is not None
    assert second.last_heartbeat_time > first.last_heartbeat_time
    assert api.read_work_pool(NAME).status == "READY"


def test_a_type_without_an_executor_is_reported_once_until_it_changes(
    api: client.PrefectClient, objects: Objects, caplog: pytest.LogCaptureFixture
) -> None:
    objects.pool(NAME, type="nomad", base_job_template={})
    sync = make_sync(api)
    assert sync.sync(NAME) is True
    assert sync.sync(NAME) is True
    assert len(caplog.messages) == 1
    assert "has type 'nomad', for which no executor is installed (known: " in caplog.messages[0]
    assert "process" in caplog.messages[0]
    assert api.read_work_pool(NAME).base_job_template == {}
    objects.delete_pool(NAME)
    objects.pool(NAME, type="salad")
    sync.sync(NAME)
    assert "has type 'salad'" in caplog.messages[1]


def test_an_api_that_is_away_is_the_callers_to_report(
    api: client.PrefectClient, prefect: prefect_api.FakePrefect
) -> None:
    kind = prefect_api.FaultKind.REQUEST_LOST
    prefect.faults.append(prefect_api.Fault(kind, times=100))
    with pytest.raises(errors.ApiUnreachable):
        make_sync(api).sync(NAME)
