"""``celery -A dispatcher …`` started wrongly: one clear line, no traceback, no secret."""

from __future__ import annotations

import http.server
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

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


@pytest.fixture
def web_server() -> Iterator[str]:
    """Host and port of a server of the web that is neither Redis nor Prefect."""
    handler = http.server.SimpleHTTPRequestHandler
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def test_an_address_at_which_no_prefect_api_answers_is_one_line(
    stack: stacks.Stack, new_stack: NewStack, web_server: str
) -> None:
    root = stack.site.api_url.removesuffix("/api")
    for url, hint in (
        (root, f"such as {root}/api"),
        (f"{root}/runs", f"such as {root}/api"),
        (f"http://{web_server}/api", "it ends in /api"),
    ):
        with new_stack(PREFECT_API_URL=url) as mistaken:
            [line] = output_of(mistaken, "worker", "-c", "2")
        assert line.startswith("dispatcher: PREFECT_API_URL is wrong: no Prefect API answers at")
        assert line.endswith(hint)


def test_an_address_at_which_no_redis_answers_is_one_line(
    stack: stacks.Stack, new_stack: NewStack, web_server: str
) -> None:
    # One answers a command of Redis at once, the other waits for more.
    prefect = stack.site.api_url.removeprefix("http://").removesuffix("/api")
    for place in (web_server, prefect):
        with new_stack(DISPATCHER_REDIS_URL=f"redis://{place}/0") as mistaken:
            [line] = output_of(mistaken, "worker", "-c", "2")
        assert "DISPATCHER_REDIS_URL is no Redis" in line


def test_a_database_that_redis_does_not_have_is_one_line(
    stack: stacks.Stack, new_stack: NewStack
) -> None:
    url = f"{stack.redis_url.rpartition('/')[0]}/99999"
    with new_stack(DISPATCHER_REDIS_URL=url) as mistaken:
        [line] = output_of(mistaken, "worker", "-c", "2")
    assert line.endswith("DB index is out of range")


def test_an_unknown_queue_is_one_line(stack: stacks.Stack) -> None:
    [line] = output_of(stack, "worker", "-c", "2", "-Q", "nonsense")
    assert line.startswith("dispatcher: there is no queue nonsense for -Q; name some of")


def test_a_misspelt_work_pool_and_setting_are_told_and_what_was_meant(
    stack: stacks.Stack, new_stack: NewStack
) -> None:
    right = stack.objects.pool(f"etl-production-{uuid4().hex}").name
    wrong = right.replace("production", "prodution")
    with new_stack(
        DISPATCHER_WORK_POOLS=wrong,
        DISPATCHER_CREATE_POOL_IF_NOT_FOUND="false",
        DISPATCHER_LEASE_SECOND="5",
    ) as mistaken:
        worker = mistaken.worker("worker", "-c", "2")
        text = worker.text()
    assert f"'{wrong}' does not exist in Prefect and is not to be made" in text
    assert f"did you mean '{right}'" in text
    assert "did you mean DISPATCHER_LEASE_SECONDS?" in text


def test_a_profile_is_enough(stack: stacks.Stack, new_stack: NewStack) -> None:
    with new_stack() as logged_in:
        url = logged_in.environment.pop("PREFECT_API_URL")
        prefect = Path(sys.executable).with_name("prefect")
        environ = {**logged_in.environment, "PATH": os.environ["PATH"]}
        subprocess.run(
            [prefect, "config", "set", f"PREFECT_API_URL={url}", "PREFECT_LOGGING_LEVEL=WARNING"],
            env=environ,
            check=True,
            capture_output=True,
        )
        logged_in.worker("worker", "-c", "2", "-B", "-s", str(logged_in.directory / "schedule"))
        logged_in.wait_until_served(logged_in.pool)
        run = logged_in.run(logged_in.deployment("completes"))
        assert run.wait_for_end().type is schemas.StateType.COMPLETED
        seen = json.loads(run.lines()[0])
        assert seen["environ"]["PREFECT_LOGGING_LEVEL"] == "WARNING"
        assert seen["environ"]["PREFECT_API_URL"] == url


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
