"""What only a real server can show: passwords, CSRF tokens, whom it takes us for."""

from __future__ import annotations

import json
import urllib.parse
import urllib.request
from concurrent import futures
from typing import Any
from uuid import UUID

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas, transport
from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing import prefect_objects
from tests import forking
from tests import prefect_server as prefect_servers
from tests.contract import conftest


class Recorder(list[tuple[str, str]]):
    """The requests that a transport sent."""

    def __call__(self, method: str, route: str) -> None:
        self.append((method, route))


def secured(server: prefect_servers.PrefectServer, recorder: Recorder) -> client.PrefectClient:
    return client.PrefectClient(
        transport.Transport(server.api_url, auth_string=conftest.AUTH_STRING, on_request=recorder)
    )


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"auth_string": "admin:wrong"},
        {"api_key": conftest.AUTH_STRING},
    ],
    ids=["none", "wrong", "an API key"],
)
def test_wrong_credentials_fail_at_once(
    credentials: dict[str, Any], secured_server: prefect_servers.PrefectServer
) -> None:
    recorder = Recorder()
    connection = transport.Transport(secured_server.api_url, on_request=recorder, **credentials)
    with pytest.raises(errors.AuthenticationFailed, match="PREFECT_API_AUTH_STRING") as caught:
        client.PrefectClient(connection).read_work_pool("any")
    assert (caught.value.status_code, caught.value.detail) == (401, "Unauthorized")
    assert len(recorder) == 1
    assert client.PrefectClient(connection).is_healthy()
    connection.close()


def test_credentials_in_the_url(secured_server: prefect_servers.PrefectServer) -> None:
    userinfo = urllib.parse.quote(conftest.AUTH_STRING, safe=":")
    url = secured_server.api_url.replace("://", f"://{userinfo}@")
    connection = transport.Transport(url)
    assert client.PrefectClient(connection).read_api_version() == "0.8.4"
    connection.close()


def test_a_csrf_token_is_fetched_when_asked_for_and_then_kept(
    secured_server: prefect_servers.PrefectServer,
) -> None:
    recorder = Recorder()
    prefect = secured(secured_server, recorder)
    name = prefect_objects.new_name("pool")

    prefect.create_work_pool(name, "process")
    prefect.send_worker_heartbeat(name, "w", 30)
    prefect.read_work_pool(name)

    assert recorder == [
        ("POST", "/work_pools/"),
        ("GET", "/csrf-token"),
        ("POST", "/work_pools/"),
        ("POST", "/work_pools/{pool}/workers/heartbeat"),
        ("GET", "/work_pools/{pool}"),
    ]
    prefect.transport.close()


def test_threads_that_all_need_a_csrf_token_share_one(
    secured_server: prefect_servers.PrefectServer,
) -> None:
    recorder = Recorder()
    prefect = secured(secured_server, recorder)
    names = [prefect_objects.new_name("pool") for _ in range(6)]
    with futures.ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: prefect.create_work_pool(name, "process"), names))
    assert recorder.count(("GET", "/csrf-token")) == 1
    prefect.transport.close()


def test_a_forked_child_has_a_csrf_token_of_its_own(
    secured_server: prefect_servers.PrefectServer,
) -> None:
    prefect = secured(secured_server, Recorder())
    name = prefect_objects.new_name("pool")
    prefect.create_work_pool(name, "process")

    def in_the_child() -> None:
        prefect.send_worker_heartbeat(name, "child", 30)

    assert forking.succeeds(in_the_child)
    prefect.send_worker_heartbeat(name, "parent", 30)
    assert {worker.name for worker in prefect.read_workers(name)} == {"child", "parent"}
    prefect.transport.close()


def claimed(objects: prefect_objects.PrefectObjects) -> tuple[UUID, str]:
    """A run of a deployment with a limit, Pending, and its lease."""
    deployment = objects.deployment(objects.pool().name, concurrency_limit=1)
    flow_run = objects.run(deployment)
    state = objects.propose(flow_run.id, StateType.PENDING).state
    assert state is not None
    return flow_run.id, str(state.state_details.deployment_concurrency_lease_id)


def renew(prefect: client.PrefectClient, lease: str) -> None:
    prefect.transport.request(
        "POST",
        "/v2/concurrency_limits/leases/{id}/renew",
        names={"id": lease},
        json={"lease_duration": 60},
    )


def test_the_server_takes_us_for_a_client_that_keeps_leases(
    prefect_client: client.PrefectClient,
) -> None:
    objects = prefect_objects.PrefectObjects(prefect_client)
    flow_run_id, lease = claimed(objects)
    running = schemas.StateProposal(type=StateType.RUNNING)
    prefect_client.set_flow_run_state(flow_run_id, running)
    renew(prefect_client, lease)


def test_a_client_unknown_to_the_server_costs_the_run_its_lease(
    prefect_client: client.PrefectClient, prefect_server: prefect_servers.PrefectServer
) -> None:
    flow_run_id, lease = claimed(prefect_objects.PrefectObjects(prefect_client))
    request = urllib.request.Request(
        f"{prefect_server.api_url}/flow_runs/{flow_run_id}/set_state",
        data=json.dumps({"state": {"type": "RUNNING"}}).encode(),
        headers={"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        assert json.load(answer)["status"] == "ACCEPT"
    with pytest.raises(errors.ApiResponseError) as caught:
        renew(prefect_client, lease)
    assert caught.value.status_code == 410
