"""How a server says no, and that the fake says it in the same words."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas, transport
from dispatcher.testing import prefect_objects


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nope", 404),
        ("GET", "/flow_runs/not-an-id", 404),
        ("PUT", "/flow_runs/{id}", 405),
        ("DELETE", "/work_pools/", 405),
    ],
)
def test_unknown_routes(method: str, path: str, status: int, api: transport.Transport) -> None:
    with pytest.raises(errors.ApiResponseError) as caught:
        api.request(method, path.replace("{id}", str(uuid4())))
    words = {404: "Not Found", 405: "Method Not Allowed"}
    assert (caught.value.status_code, caught.value.detail) == (status, words[status])


@pytest.mark.parametrize(
    ("state", "complaint"),
    [
        ({"type": "NO_SUCH_TYPE"}, "body.state.type: Input should be 'SCHEDULED', 'PENDING'"),
        ({"type": "PENDING", "id": "x"}, "body.state.id: Extra inputs are not permitted"),
        (
            {"type": "PENDING", "timestamp": "2026-01-01T00:00:00Z"},
            "body.state.timestamp: Extra inputs are not permitted",
        ),
        ({}, "body.state.type: Field required"),
    ],
)
def test_a_state_that_the_server_does_not_take(
    state: dict[str, Any],
    complaint: str,
    api: transport.Transport,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    with pytest.raises(errors.RequestRefused) as caught:
        api.request(
            "POST",
            "/flow_runs/{id}/set_state",
            names={"id": str(flow_run.id)},
            json={"state": state},
        )
    assert caught.value.status_code == 422
    assert f"Invalid request received. {complaint}" in caught.value.detail


@pytest.mark.parametrize(
    ("method", "path", "body", "complaint"),
    [
        (
            "POST",
            "/flow_runs/bulk_set_state",
            {"state": {"type": "PENDING"}, "limit": 51},
            "body.limit: Input should be less than or equal to 50",
        ),
        (
            "POST",
            "/flow_runs/filter",
            {"flow_runs": {"no_such_field": {}}},
            "body.flow_runs.no_such_field: Extra inputs are not permitted",
        ),
        ("POST", "/events", [{"event": "a"}], "body.0.occurred: Field required"),
        ("POST", "/work_pools/", {"name": "p", "x": 1}, "body.x: Extra inputs"),
        ("POST", "/work_pools/", {}, "body.name: Field required"),
    ],
)
def test_bodies_that_the_server_does_not_take(
    method: str, path: str, body: object, complaint: str, api: transport.Transport
) -> None:
    with pytest.raises(errors.RequestRefused) as caught:
        api.request(method, path, json=body)
    assert complaint in caught.value.detail


def test_a_refusal_never_repeats_what_was_sent(api: transport.Transport) -> None:
    with pytest.raises(errors.RequestRefused) as caught:
        api.request("POST", "/variables/", json={"name": "Bad Name", "value": "hunter2"})
    assert "hunter2" not in str(caught.value)
    assert "Bad Name" not in str(caught.value)


def test_job_variables_change_only_while_scheduled(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment, state={"type": "PENDING"})
    with pytest.raises(errors.RequestRefused) as caught:
        prefect.transport.request(
            "PATCH",
            "/flow_runs/{id}",
            names={"id": str(flow_run.id)},
            json={"job_variables": {"a": 1}},
        )
    assert (caught.value.status_code, caught.value.detail) == (
        400,
        "Job variables for a flow run in state PENDING cannot be updated",
    )


def test_a_server_without_csrf_protection_says_so(api: transport.Transport) -> None:
    with pytest.raises(errors.RequestRefused, match="CSRF protection is disabled"):
        api.request("GET", "/csrf-token", params={"client": "x"})
