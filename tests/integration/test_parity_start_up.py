"""Starting under odd names, beside another worker, without servers, and with wrong credentials."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.prefect_api import client, schemas, transport
from dispatcher.testing import prefect_objects
from executors import process
from tests import light_jobs, redis_server
from tests import prefect_server as prefect_servers
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

SECRET = "correct-horse-battery"
AUTH_STRING = f"admin:{SECRET}"
CREDENTIALS = {
    "none": {},
    "wrong-auth-string": {"PREFECT_API_AUTH_STRING": "admin:" + SECRET[::-1]},
    "key-instead": {"PREFECT_API_KEY": SECRET[::-1]},
}


@pytest.fixture
def own_redis() -> Iterator[redis_server.RedisServer]:
    """A Redis that is not started yet."""
    with tempfile.TemporaryDirectory(prefix="redis-") as directory:
        server = redis_server.RedisServer(Path(directory))
        yield server
        server.stop()


@pytest.fixture(scope="module")
def own_server(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[prefect_servers.PrefectServer]:
    """A Prefect server that asks for credentials."""
    server = prefect_servers.PrefectServer(
        tmp_path_factory.mktemp("own"),
        cache=pytestconfig.cache.mkdir("prefect"),
        environment={"PREFECT_SERVER_API_AUTH_STRING": AUTH_STRING},
    )
    with server:
        yield server


@pytest.fixture(scope="module")
def own_site(
    tmp_path_factory: pytest.TempPathFactory,
    site: stacks.Site,
    own_server: prefect_servers.PrefectServer,
) -> Iterator[stacks.Site]:
    """Where dispatchers of that server live."""
    connection = transport.Transport(own_server.api_url, auth_string=AUTH_STRING)
    yield stacks.Site(
        directory=tmp_path_factory.mktemp("own-stacks"),
        bytecode=site.bytecode,
        api_url=own_server.api_url,
        new_redis_url=site.new_redis_url,
        objects=prefect_objects.PrefectObjects(client.PrefectClient(connection)),
    )
    connection.close()


def test_two_workers_that_start_together_share_a_missing_pool_of_an_odd_name(
    new_stack: NewStack, server_objects: prefect_objects.PrefectObjects
) -> None:
    odd = prefect_objects.new_name("my pool ü#?+")
    foreign = server_objects.pool(type="no-such-type").name
    with new_stack(odd, foreign) as stack:
        workers = [stack.start(name, *worker_options(stack, name)) for name in ("one", "two")]
        for worker in workers:
            worker.wait_for_text(" ready.")
        stack.wait_until_served(odd)
        deployment = stack.deployment("none", pool=odd)
        runs = [light_jobs.run(stack, deployment, *light_jobs.COMPLETE) for _ in range(3)]
        left_alone = light_jobs.run(
            stack, stack.deployment("none", pool=foreign), *light_jobs.COMPLETE
        )

        for run in runs:
            assert run.wait_for_end().type is State.COMPLETED
            assert len(run.lines()) == 1
        pool = stack.objects.client.read_work_pool(odd)
        assert pool.base_job_template == process.ProcessExecutor.get_default_base_job_template()
        assert len(stack.objects.client.read_workers(odd)) == 1
        assert all(worker.is_running for worker in workers)
        assert any("no executor is installed" in worker.text() for worker in workers)
        assert "PENDING" not in left_alone.history()


def worker_options(stack: stacks.Stack, name: str) -> tuple[str, ...]:
    schedule = str(stack.directory / f"schedule-{name}")
    named = ("--loglevel", "INFO", "--hostname", stack.node(name))
    return ("worker", *named, "-B", "-s", schedule, "--concurrency", "2")


@pytest.mark.parametrize("name", ["a/b", "a%b"])
def test_a_worker_name_that_would_not_fit_into_a_path_is_refused(
    new_stack: NewStack, name: str
) -> None:
    with new_stack(DISPATCHER_WORKER_NAME=name) as stack:
        worker = stack.start("worker", *worker_options(stack, "worker"))
        code = worker.wait(stacks.READY_SECONDS)

    assert code != 0
    *_, last = worker.text().splitlines()
    assert last.startswith("dispatcher: DISPATCHER_WORKER_NAME is wrong")


@pytest.mark.parametrize("credentials", CREDENTIALS.values(), ids=CREDENTIALS)
def test_a_worker_with_wrong_credentials_ends_with_one_line_that_does_not_show_them(
    own_site: stacks.Site, credentials: dict[str, str]
) -> None:
    with stacks.Stack(own_site, **credentials) as stack:
        worker = stack.start("worker", *worker_options(stack, "worker"))
        code = worker.wait(stacks.READY_SECONDS)

    assert code != 0
    *_, last = worker.text().splitlines()
    assert last.startswith("dispatcher: ")
    assert "401: Unauthorized" in last
    assert "check PREFECT_API_KEY or PREFECT_API_AUTH_STRING" in last
    assert "Traceback" not in worker.text()
    assert SECRET[::-1] not in worker.text()


def test_without_servers_a_worker_waits_and_a_restart_of_prefect_loses_no_end_of_a_run(
    own_site: stacks.Site,
    own_server: prefect_servers.PrefectServer,
    own_redis: redis_server.RedisServer,
) -> None:
    own_server.stop()
    settings = {
        "PREFECT_API_AUTH_STRING": AUTH_STRING,
        "DISPATCHER_REDIS_URL": own_redis.new_url(),
    }
    with stacks.Stack(own_site, **settings) as stack:
        worker = stack.start("worker", *worker_options(stack, "worker"), "--concurrency", "3")
        worker.wait_for_text("the worker starts without Prefect")
        worker.wait_for_text("Cannot connect to redis://")
        own_redis.start()
        own_server.start()
        stack.wait_until_served(stack.pool)
        gate = stack.directory / "gate"
        completes = stack.run(
            stack.deployment("waits_for_file", file="dispatch_flows.py"), {"file": str(gate)}
        )
        dies = light_jobs.run(stack, stack.deployment("none"), "note", f"wait:{gate}", "exit:3")
        completes.wait_for_line("running")
        light_jobs.wait_until_seen(dies)
        before = worker.text()

        own_server.stop()
        gate.touch()
        completes.wait_for_line("executed")
        own_server.start()

        assert completes.wait_for_end().type is State.COMPLETED
        assert dies.wait_for_end().type is State.CRASHED
        assert worker.is_running
        assert worker.text().count("the worker starts without Prefect") == 1
        # Later the engine shows its own, when Prefect is away.
        assert "Traceback" not in before
        assert SECRET not in worker.text()
