"""``celery -A dispatcher …`` started wrongly: one clear line, no traceback, no secret."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import client, schemas, transport
from dispatcher.testing import prefect_objects
from tests import prefect_server as prefect_servers
from tests import redis_server
from tests import stack as stacks
from tests.conftest import NewStack

SECRET = "correct-horse-battery"
AUTH_STRING = f"admin:{SECRET}"


def output_of(stack: stacks.Stack, *arguments: str) -> list[str]:
    """What a command that must fail at once writes, without Celery's warning about root."""
    process = stack.start(f"command-{len(stack.processes)}", *arguments)
    assert process.wait(stacks.READY_SECONDS) != 0
    _, _, own = process.text().rpartition("_warn_or_raise_security_error(egid, euid, gid, uid,\n")
    return own.splitlines()


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    """Settings that are right; nothing is started with them."""
    with new_stack() as stack:
        yield stack


@pytest.mark.parametrize("command", ["worker", "beat"])
@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("DISPATCHER_WORK_POOLS", "", "DISPATCHER_WORK_POOLS is not set"),
        ("PREFECT_API_URL", "", "PREFECT_API_URL is not set"),
        ("DISPATCHER_POLL_INTERVAL", SECRET, "DISPATCHER_POLL_INTERVAL is wrong"),
        ("DISPATCHER_REDIS_URL", f"http://:{SECRET}@host", "DISPATCHER_REDIS_URL is wrong"),
        ("DISPATCHER_WORKER_NAME", f"a/{SECRET}", "DISPATCHER_WORKER_NAME is wrong"),
    ],
)
def test_a_missing_or_wrong_setting_is_one_line_that_names_it(
    new_stack: NewStack, command: str, variable: str, value: str, words: str
) -> None:
    with new_stack(**{variable: value}) as stack:
        lines = output_of(stack, command)

    assert len(lines) == 1
    assert lines[0].startswith(f"dispatcher: {words}")
    assert SECRET not in lines[0]


def test_all_wrong_settings_are_named_at_once(new_stack: NewStack) -> None:
    with new_stack(DISPATCHER_WORK_POOLS="", PREFECT_API_URL="") as stack:
        lines = output_of(stack, "worker")

    assert len(lines) == 1
    assert "DISPATCHER_WORK_POOLS" in lines[0]
    assert "PREFECT_API_URL" in lines[0]


@pytest.mark.parametrize("queues", [(), ("-Q", f"{tasks.RUNS_QUEUE},{tasks.CONTROL_QUEUE}")])
def test_a_worker_too_small_for_both_queues_is_refused(
    stack: stacks.Stack, queues: tuple[str, ...]
) -> None:
    lines = output_of(stack, "worker", "--concurrency", "1", *queues)

    assert len(lines) == 1
    assert lines[0].startswith("dispatcher: a worker that serves both queues needs --concurrency 2")


@pytest.fixture(scope="module")
def guarded_server(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[prefect_servers.PrefectServer]:
    """A Prefect server that asks for credentials."""
    server = prefect_servers.PrefectServer(
        tmp_path_factory.mktemp("guarded"),
        cache=pytestconfig.cache.mkdir("prefect"),
        environment={"PREFECT_SERVER_API_AUTH_STRING": AUTH_STRING},
    )
    with server:
        yield server


@pytest.fixture(scope="module")
def guarded_site(
    tmp_path_factory: pytest.TempPathFactory,
    site: stacks.Site,
    guarded_server: prefect_servers.PrefectServer,
    tcp_redis: redis_server.RedisServer,
) -> Iterator[stacks.Site]:
    connection = transport.Transport(guarded_server.api_url, auth_string=AUTH_STRING)
    yield stacks.Site(
        directory=tmp_path_factory.mktemp("guarded-stacks"),
        bytecode=site.bytecode,
        api_url=guarded_server.api_url,
        new_redis_url=tcp_redis.new_url,
        objects=prefect_objects.PrefectObjects(client.PrefectClient(connection)),
    )
    connection.close()


@pytest.mark.parametrize(
    "credentials",
    [
        {},
        {"PREFECT_API_AUTH_STRING": "admin:" + SECRET[::-1]},
        {"PREFECT_API_KEY": SECRET[::-1]},
    ],
    ids=["none", "wrong-auth-string", "key-instead"],
)
def test_a_worker_with_wrong_credentials_is_refused_without_showing_them(
    guarded_site: stacks.Site, credentials: dict[str, str]
) -> None:
    with stacks.Stack(guarded_site, **credentials) as stack:
        lines = output_of(stack, "worker", "--concurrency", "2")

    assert len(lines) == 1
    assert lines[0].startswith("dispatcher: ")
    assert "401: Unauthorized" in lines[0]
    assert "check PREFECT_API_KEY or PREFECT_API_AUTH_STRING" in lines[0]
    assert SECRET[::-1] not in lines[0]


def test_the_right_auth_string_serves_the_pool_and_reaches_the_engine(
    guarded_site: stacks.Site,
) -> None:
    with stacks.Stack(guarded_site, PREFECT_API_AUTH_STRING=AUTH_STRING) as stack:
        stack.worker_with_beat(concurrency=2)
        stack.wait_until_served(stack.pool)
        run = stack.run(stack.deployment("notes", file="dispatch_flows.py"))

        assert run.wait_for_end().type is schemas.StateType.COMPLETED
        assert SECRET not in stack.logs()
        assert len(run.lines()) == 1
