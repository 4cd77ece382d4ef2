"""Log lines and events on their way into the server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas
from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing import prefect_objects
from tests import waiting

NOW = datetime.now(UTC)


def logged(prefect: client.PrefectClient, flow_run: schemas.FlowRun) -> list[dict[str, Any]]:
    body = {"logs": {"flow_run_id": {"any_": [str(flow_run.id)]}}, "sort": "TIMESTAMP_ASC"}
    rows: list[dict[str, Any]] = prefect.transport.request("POST", "/logs/filter", json=body)
    return rows


def events_about(prefect: client.PrefectClient, resource: str, name: str) -> list[dict[str, Any]]:
    wanted = {
        "occurred": {"since": (NOW - timedelta(minutes=1)).isoformat()},
        "event": {"name": [name]},
        "any_resource": {"id": [resource]},
        "order": "ASC",
    }
    answer = prefect.transport.request("POST", "/events/filter", json={"filter": wanted})
    rows: list[dict[str, Any]] = answer["events"]
    return rows


def test_lines_reach_the_runs_log_in_the_order_of_their_times(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)

    def line(message: str, seconds: int) -> schemas.LogEntry:
        return schemas.LogEntry(
            name="prefect.flow_runs.worker",
            level=20,
            message=message,
            timestamp=NOW + timedelta(seconds=seconds),
            flow_run_id=flow_run.id,
        )

    prefect.create_logs([line("second ü", 2), line("first", 1)])
    rows = logged(prefect, flow_run)
    assert [row["message"] for row in rows] == ["first", "second ü"]
    assert (rows[0]["level"], rows[0]["name"]) == (20, "prefect.flow_runs.worker")


def test_a_line_about_no_run_or_an_unknown_one_is_taken(prefect: client.PrefectClient) -> None:
    entry = schemas.LogEntry(name="a", level=10, message="x", timestamp=NOW)
    prefect.create_logs([entry, entry.model_copy(update={"flow_run_id": uuid4()})])
    prefect.create_logs([])


def test_one_bad_line_refuses_all_of_them(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    good = {
        "name": "a",
        "level": 20,
        "message": "x",
        "timestamp": NOW.isoformat(),
        "flow_run_id": str(flow_run.id),
    }
    with pytest.raises(errors.RequestRefused, match=r"body\.1\.worker_id: Extra inputs"):
        prefect.transport.request("POST", "/logs/", json=[good, {**good, "worker_id": "w"}])
    assert logged(prefect, flow_run) == []


def test_an_event_is_one_event_however_often_it_is_sent(prefect: client.PrefectClient) -> None:
    resource = f"prefect.worker.test.{uuid4().hex}"
    event = schemas.Event(
        occurred=NOW,
        event="prefect.worker.started",
        resource={"prefect.resource.id": resource, "prefect.resource.name": "w"},
        related=[
            {"prefect.resource.id": "prefect.work-pool.x", "prefect.resource.role": "work-pool"}
        ],
        payload={"a": 1},
    )
    prefect.create_events([event])
    prefect.create_events([event])
    prefect.create_events([])
    (row,) = waiting.wait_for(
        lambda: events_about(prefect, resource, "prefect.worker.started"),
        seconds=20,
        what="the event is on the server",
    )
    assert row["id"] == str(event.id)
    assert row["payload"] == {"a": 1}


def test_the_server_itself_tells_about_every_state(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    result = objects.propose(flow_run.id, StateType.PENDING)
    assert result.state is not None
    (row,) = waiting.wait_for(
        lambda: events_about(
            prefect, f"prefect.flow-run.{flow_run.id}", "prefect.flow-run.Pending"
        ),
        seconds=20,
        what="the event about the state is on the server",
    )
    assert row["id"] == str(result.state.id)
