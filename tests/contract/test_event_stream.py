"""Hearing a real server's events, and servers that have none."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from uuid import UUID

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, event_stream, schemas, transport
from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing import prefect_api, prefect_objects
from tests import prefect_server as prefect_servers
from tests import waiting
from tests.contract.conftest import AUTH_STRING

SCHEDULED, CANCELLING = "prefect.flow-run.Scheduled", "prefect.flow-run.Cancelling"
SECONDS = 15.0


def heard(stream: event_stream.EventStream) -> tuple[str, str]:
    """The next event: its name and the run that it is about."""
    event = waiting.wait_for(lambda: stream.receive(1.0), seconds=SECONDS, what="an event")
    assert event is not None
    return event.event, event.resource["prefect.resource.id"]


def of(run_id: UUID) -> str:
    return f"prefect.flow-run.{run_id}"


def test_a_real_server_tells_of_due_and_cancelling_runs_of_the_pools_asked_for(
    prefect_server: prefect_servers.PrefectServer, server_objects: prefect_objects.PrefectObjects
) -> None:
    pool, other = server_objects.pool(), server_objects.pool()
    deployment, foreign = (server_objects.deployment(each.name) for each in (pool, other))
    api = transport.Transport(prefect_server.api_url)
    with event_stream.open_stream(
        api, names=[SCHEDULED, CANCELLING], resource_ids=[f"prefect.work-pool.{pool.id}"]
    ) as stream:
        server_objects.run(foreign)
        run = server_objects.run(deployment)
        assert heard(stream) == (SCHEDULED, of(run.id))
        server_objects.propose(run.id, StateType.RUNNING)
        server_objects.propose(run.id, StateType.CANCELLING)
        assert heard(stream) == (CANCELLING, of(run.id))
        assert stream.receive(0.1) is None


def test_a_real_server_tells_of_a_cancel_whatever_became_of_the_runs_pool(
    prefect_server: prefect_servers.PrefectServer, server_objects: prefect_objects.PrefectObjects
) -> None:
    pool = server_objects.pool()
    run = server_objects.run(server_objects.deployment(pool.name))
    server_objects.propose(run.id, StateType.RUNNING)
    delete = server_objects.client.transport.request
    delete("DELETE", "/work_pools/{name}", names={"name": pool.name})
    api = transport.Transport(prefect_server.api_url)
    with event_stream.open_stream(api, names=[CANCELLING], resource_ids=[]) as stream:
        server_objects.propose(run.id, StateType.CANCELLING)
        assert waiting.wait_for(
            lambda: heard(stream) == (CANCELLING, of(run.id)), seconds=SECONDS, what="its cancel"
        )


@pytest.fixture
def secured(
    secured_server: prefect_servers.PrefectServer,
) -> Iterator[tuple[transport.Transport, schemas.WorkPool, prefect_objects.PrefectObjects]]:
    api = transport.Transport(secured_server.api_url, auth_string=AUTH_STRING)
    objects = prefect_objects.PrefectObjects(client.PrefectClient(api))
    yield api, objects.pool(), objects
    api.close()


def test_a_server_with_a_password_takes_it_in_the_first_message(
    secured: tuple[transport.Transport, schemas.WorkPool, prefect_objects.PrefectObjects],
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    api, pool, objects = secured
    with event_stream.open_stream(
        api, names=[SCHEDULED], resource_ids=[f"prefect.work-pool.{pool.id}"]
    ) as stream:
        run = objects.run(objects.deployment(pool.name))
        assert heard(stream) == (SCHEDULED, of(run.id))
    assert AUTH_STRING not in caplog.text


def test_a_wrong_password_is_refused_and_not_repeated(
    secured_server: prefect_servers.PrefectServer,
) -> None:
    api = transport.Transport(secured_server.api_url, auth_string="admin:s3cret-wrong")
    with (
        pytest.raises(errors.EventsRefused) as refused,
        event_stream.open_stream(api, names=[SCHEDULED], resource_ids=["x"]) as stream,
    ):
        stream.receive(SECONDS)
    assert "s3cret" not in str(refused.value)
    assert "s3cret" not in repr(api.socket(event_stream.ROUTE))


def test_a_server_without_events_refuses() -> None:
    with prefect_api.FakePrefect().serve() as api_url:
        api = transport.Transport(api_url)
        with (
            pytest.raises(errors.EventsRefused, match="404"),
            event_stream.open_stream(api, names=[SCHEDULED], resource_ids=["x"]),
        ):
            pass


def test_a_server_that_is_away_is_unreachable() -> None:
    api = transport.Transport("http://127.0.0.1:9/api")
    with (
        pytest.raises(errors.ApiUnreachable),
        event_stream.open_stream(api, names=[SCHEDULED], resource_ids=["x"]),
    ):
        pass


def test_the_address_of_the_stream_follows_that_of_the_api() -> None:
    key = transport.Transport(
        "https://api.example.test/api/accounts/1/workspaces/2/",
        api_key="pnu_key",
        custom_headers={"X-Proxy": "1", "Host": "x", "User-Agent": "x", "Upgrade": "x"},
    ).socket("/events/out")
    assert key.url == "wss://api.example.test/api/accounts/1/workspaces/2/events/out"
    assert (key.token, dict(key.headers), key.tls is not None) == (
        "pnu_key",
        {"X-Proxy": "1"},
        True,
    )
    plain = transport.Transport("http://u:p%40@localhost:4200/api").socket("/events/out")
    assert (plain.url, plain.token, plain.tls) == (
        "ws://localhost:4200/api/events/out",
        "u:p@",
        None,
    )
