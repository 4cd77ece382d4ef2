"""The client's own doings: bodies, pages, chunks, fall-backs. Its calls are contract-tested."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas, transport
from dispatcher.prefect_api.schemas import FlowRunFilter, OrchestrationStatus, StateType
from dispatcher.testing import prefect_api, prefect_objects
from dispatcher.testing.prefect_api import Fault, FaultKind

PENDING = schemas.StateProposal(type=StateType.PENDING, name="Pending")
BULK = "/flow_runs/bulk_set_state"


def answering(status: int, body: Any = None) -> client.PrefectClient:
    """A client of a server that always answers the same."""
    script = httpx.MockTransport(lambda _: httpx.Response(status, json=body))
    return client.PrefectClient(
        transport.Transport("http://prefect.test/api", httpx_transport=script)
    )


@pytest.fixture
def fake() -> prefect_api.FakePrefect:
    return prefect_api.FakePrefect(sleep=lambda _: None)


@pytest.fixture
def prefect(fake: prefect_api.FakePrefect) -> client.PrefectClient:
    return fake.client(sleep=lambda _: None)


@pytest.fixture
def objects(prefect: client.PrefectClient) -> prefect_objects.PrefectObjects:
    return prefect_objects.PrefectObjects(prefect)


@pytest.fixture
def deployment(objects: prefect_objects.PrefectObjects) -> schemas.Deployment:
    return objects.deployment(objects.pool("p").name)


# Filters


@pytest.mark.parametrize(
    ("wanted", "body"),
    [
        (FlowRunFilter(), {}),
        (FlowRunFilter(ids=[UUID(int=1)]), {"flow_runs": {"id": {"any_": [str(UUID(int=1))]}}}),
        (
            FlowRunFilter(not_ids=[UUID(int=1)]),
            {"flow_runs": {"id": {"not_any_": [str(UUID(int=1))]}}},
        ),
        (
            FlowRunFilter(state_types=[StateType.PENDING]),
            {"flow_runs": {"state": {"type": {"any_": ["PENDING"]}}}},
        ),
        (
            FlowRunFilter(state_names=["Late"], states_any=True),
            {"flow_runs": {"state": {"name": {"any_": ["Late"]}}}},
        ),
        (
            FlowRunFilter(
                state_types=[StateType.CANCELLING], state_names=["Cancelling"], states_any=True
            ),
            {
                "flow_runs": {
                    "state": {
                        "operator": "or_",
                        "type": {"any_": ["CANCELLING"]},
                        "name": {"any_": ["Cancelling"]},
                    }
                }
            },
        ),
        (
            FlowRunFilter(work_pool_names=["p"], work_queue_names=["q", "r"]),
            {
                "work_pools": {"name": {"any_": ["p"]}},
                "work_pool_queues": {"name": {"any_": ["q", "r"]}},
            },
        ),
    ],
)
def test_a_filter_says_no_more_than_it_was_told(wanted: FlowRunFilter, body: Any) -> None:
    assert wanted.to_body() == body


@pytest.mark.parametrize("empty", [[], (), frozenset()])
def test_an_empty_list_of_ids_is_refused(empty: Any) -> None:
    with pytest.raises(ValueError, match="an empty list of flow run ids"):
        FlowRunFilter(ids=empty)


# States


def test_a_repeated_claim_is_the_same_claim(
    fake: prefect_api.FakePrefect,
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment)
    fake.faults.append(Fault(FaultKind.REPLY_LOST, route="/flow_runs/{id}/set_state"))
    mine = PENDING.model_copy(update={"transition_id": uuid4()})

    result = prefect.set_flow_run_state(flow_run.id, mine)

    assert result.status is OrchestrationStatus.REJECT
    assert result.state is not None
    assert result.state.state_details.transition_id == mine.transition_id
    assert [state.name for state in fake.states(flow_run.id)] == ["Scheduled", "Pending"]


def test_a_claim_without_an_id_gets_one_that_its_repetition_keeps(
    fake: prefect_api.FakePrefect,
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment)
    fake.faults.append(Fault(FaultKind.REPLY_LOST, route="/flow_runs/{id}/set_state"))
    result = prefect.set_flow_run_state(flow_run.id, PENDING)
    assert result.reason == "This run has already made this state transition."


def test_a_bulk_claim_whose_answer_was_lost_is_found_by_its_transition_id(
    fake: prefect_api.FakePrefect,
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    ids = [objects.run(deployment).id for _ in range(3)]
    fake.faults.append(Fault(FaultKind.REPLY_LOST, route=BULK))
    mine = PENDING.model_copy(update={"transition_id": uuid4()})
    scheduled = [StateType.SCHEDULED]
    assert prefect.bulk_set_flow_run_state(ids, mine, only_state_types=scheduled) == []
    runs = prefect.read_flow_runs(FlowRunFilter(ids=ids))
    owners = {row.state.state_details.transition_id for row in runs if row.state}
    assert owners == {mine.transition_id}


def test_many_runs_are_claimed_in_chunks_under_one_transition_id(
    fake: prefect_api.FakePrefect,
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    ids = [objects.run(deployment).id for _ in range(101)]
    results = prefect.bulk_set_flow_run_state(ids, PENDING)
    assert {row.flow_run_id for row in results} == set(ids)
    assert {row.status for row in results} == {OrchestrationStatus.ACCEPT}
    assert len({row.state.state_details.transition_id for row in results if row.state}) == 1
    assert fake.requests["POST", BULK] == 3


@pytest.mark.parametrize("status", [404, 405])
def test_an_old_server_that_knows_no_bulk_claim(status: int) -> None:
    old = answering(status, {"detail": "Not Found"})
    with pytest.raises(errors.BulkNotSupported, match=r"3\.6\.16") as caught:
        old.bulk_set_flow_run_state([uuid4()], PENDING)
    assert caught.value.status_code == status


def test_other_errors_of_a_bulk_claim_stay_what_they_are() -> None:
    with pytest.raises(errors.RequestRefused):
        answering(422, {"detail": "no"}).bulk_set_flow_run_state([uuid4()], PENDING)


def test_a_failed_run_of_a_bulk_claim_has_no_state() -> None:
    row = {
        "flow_run_id": str(UUID(int=1)),
        "status": "ABORT",
        "state": None,
        "details": {"type": "abort_details", "reason": "boom"},
    }
    (result,) = answering(200, {"results": [row]}).bulk_set_flow_run_state([uuid4()], PENDING)
    assert (result.status, result.state, result.reason) == (
        OrchestrationStatus.ABORT,
        None,
        "boom",
    )


# Lists, health, reports


def test_long_lists_are_read_page_by_page(
    fake: prefect_api.FakePrefect,
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
) -> None:
    objects.pool("p")
    for number in range(client.PAGE_LIMIT):
        prefect.send_worker_heartbeat("p", f"worker-{number}", 30)
    assert len(prefect.read_workers("p")) == client.PAGE_LIMIT
    prefect.send_worker_heartbeat("p", "one more", 30)
    assert len(prefect.read_workers("p")) == client.PAGE_LIMIT + 1
    assert fake.requests["POST", "/work_pools/{pool}/workers/filter"] == 4


@pytest.mark.parametrize(
    ("status", "body", "healthy"),
    [(200, True, True), (503, None, False), (401, None, False), (200, {"a": 1}, False)],
)
def test_health_is_a_plain_yes_or_no(status: int, body: Any, healthy: bool) -> None:
    assert answering(status, body).is_healthy() is healthy


def test_health_is_asked_once(fake: prefect_api.FakePrefect, prefect: client.PrefectClient) -> None:
    fake.faults.append(Fault(FaultKind.REQUEST_LOST, route="/health"))
    assert not prefect.is_healthy()
    assert fake.requests["GET", "/health"] == 1


def test_nothing_to_report_is_not_reported(
    fake: prefect_api.FakePrefect, prefect: client.PrefectClient
) -> None:
    prefect.create_logs([])
    prefect.create_events([])
    assert not fake.requests


def test_an_event_sent_twice_is_one_event(
    fake: prefect_api.FakePrefect, prefect: client.PrefectClient
) -> None:
    fake.faults.append(Fault(FaultKind.REPLY_LOST, route="/events"))
    event = schemas.Event(
        occurred=datetime.now(UTC), event="x.y", resource={"prefect.resource.id": "x"}
    )
    prefect.create_events([event])
    assert [row.id for row in fake.events("x.y")] == [event.id]


def test_log_lines_arrive(
    fake: prefect_api.FakePrefect,
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment)
    now = datetime.now(UTC)
    entry = schemas.LogEntry(
        name="n", level=20, message="hi", timestamp=now, flow_run_id=flow_run.id
    )
    prefect.create_logs([entry])
    assert [(log.message, log.timestamp) for log in fake.logs(flow_run.id)] == [("hi", now)]


@pytest.mark.parametrize(
    "read",
    [
        lambda prefect: prefect.read_block_document("slug", "name"),
        lambda prefect: prefect.read_block_document_by_id(uuid4()),
        lambda prefect: prefect.read_variable("name"),
    ],
    ids=["block by name", "block by id", "variable"],
)
def test_only_not_found_means_that_there_is_none(
    read: Callable[[client.PrefectClient], Any],
) -> None:
    assert read(answering(404, {"detail": "no"})) is None
    with pytest.raises(errors.AuthenticationFailed):
        read(answering(401))


def test_a_block_document_says_its_type(
    prefect: client.PrefectClient, objects: prefect_objects.PrefectObjects
) -> None:
    created = objects.block({"a": "1"})
    read = prefect.read_block_document_by_id(created.id)
    assert read is not None
    assert read.block_type_slug == created.block_type_slug
    kept = schemas.BlockDocument(id=created.id, block_type_slug="mine")
    assert kept.block_type_slug == "mine"
