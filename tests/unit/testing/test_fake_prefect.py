"""The fake Prefect API beyond what it shares with a real server: faults, clock, counts."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from dispatcher import errors
from dispatcher.prefect_api import schemas
from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing import prefect_api, prefect_objects
from dispatcher.testing.fake_prefect import faults
from dispatcher.testing.prefect_api import Fault, FaultKind

START = datetime(2030, 1, 1, tzinfo=UTC)


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


def test_it_is_a_plain_object_without_any_http() -> None:
    fake = prefect_api.FakePrefect()
    status, body = fake.handle("POST", "/work_pools/", json={"name": "a b", "type": "process"})
    assert (status, body["name"]) == (201, "a b")
    assert fake.handle("GET", "/work_pools/a%20b").body["id"] == body["id"]
    assert fake.handle("GET", "/nope") == (404, {"detail": "Not Found"})


def test_it_serves_other_processes() -> None:
    fake = prefect_api.FakePrefect()
    with fake.serve() as api_url:
        with urllib.request.urlopen(f"{api_url}/version", timeout=10) as answer:
            assert json.load(answer) == "0.8.4"
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(f"{api_url}/flows/{uuid4()}", timeout=10)
        assert caught.value.code == 404
        caught.value.close()


def test_its_time_is_the_tests() -> None:
    clock = Clock()
    fake = prefect_api.FakePrefect(clock=clock)
    objects = prefect_objects.PrefectObjects(fake.client())
    flow_run = objects.run(objects.deployment(objects.pool("p").name))
    clock.now += timedelta(hours=1)
    objects.propose(flow_run.id, StateType.PENDING)
    first, second = fake.states(flow_run.id)
    assert first.timestamp - START < timedelta(seconds=1)
    assert second.timestamp == START + timedelta(hours=1)


def test_no_two_states_share_a_time() -> None:
    fake = prefect_api.FakePrefect(clock=lambda: START)
    objects = prefect_objects.PrefectObjects(fake.client())
    flow_run = objects.run(objects.deployment(objects.pool("p").name))
    objects.propose(flow_run.id, StateType.PENDING)
    objects.propose(flow_run.id, StateType.RUNNING)
    times = [state.timestamp for state in fake.states(flow_run.id)]
    assert times == sorted(set(times))


def test_it_counts_requests_by_route() -> None:
    fake = prefect_api.FakePrefect()
    objects = prefect_objects.PrefectObjects(fake.client())
    objects.pool("a")
    objects.client.read_work_pool("a")
    objects.client.read_work_pool("a")
    assert fake.requests == {("POST", "/work_pools/"): 1, ("GET", "/work_pools/{pool}"): 2}


def test_a_fault_hits_as_often_as_it_is_told_and_what_it_is_told() -> None:
    fake = prefect_api.FakePrefect()
    fake.faults.append(Fault(FaultKind.REFUSED, "GET", "/health", after=1, times=2, status=500))
    statuses = [fake.handle("GET", "/health").status for _ in range(4)]
    assert statuses == [200, 500, 500, 200]
    fake.faults.append(Fault(FaultKind.REFUSED, "POST", "/health"))
    fake.faults.append(Fault(FaultKind.REFUSED, "GET", "/version"))
    assert fake.handle("GET", "/health").status == 200


@pytest.mark.parametrize(
    ("kind", "applied"), [(FaultKind.REQUEST_LOST, False), (FaultKind.REPLY_LOST, True)]
)
def test_a_broken_connection_before_and_after_the_deed(kind: FaultKind, applied: bool) -> None:
    fake = prefect_api.FakePrefect()
    fake.faults.append(Fault(kind))
    with pytest.raises(faults.ConnectionBroken):
        fake.handle("POST", "/work_pools/", json={"name": "p"})
    assert (fake.handle("GET", "/work_pools/p").status == 200) is applied


def test_a_delay_is_slept() -> None:
    pauses: list[float] = []
    fake = prefect_api.FakePrefect(sleep=pauses.append)
    fake.faults.append(Fault(FaultKind.DELAYED, seconds=2.5))
    assert fake.handle("GET", "/health").status == 200
    assert pauses == [2.5]


def test_it_can_be_an_older_server() -> None:
    fake = prefect_api.FakePrefect(without_routes={"/flow_runs/bulk_set_state"})
    pending = schemas.StateProposal(type=StateType.PENDING)
    with pytest.raises(errors.BulkNotSupported):
        fake.client().bulk_set_flow_run_state([uuid4()], pending)


def test_what_it_does_not_know_it_refuses_loudly() -> None:
    fake = prefect_api.FakePrefect()
    unknown = {"flow_runs": {"start_time": {"after_": START.isoformat()}}}
    answer = fake.handle("POST", "/flow_runs/filter", json=unknown)
    assert answer.status == 422
    assert answer.body["exception_detail"][0]["loc"] == ["body", "flow_runs", "start_time"]
