"""Fixtures for all tests."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from dispatcher.prefect_api import client, retry, transport
from dispatcher.testing import prefect_objects
from tests import faulty_proxy, redis_server, stack
from tests import prefect_server as prefect_servers

NewStack = Callable[..., stack.Stack]

# A shell ignores these two for what it starts in the background, and so would all our processes.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGQUIT) is signal.SIG_IGN:
    signal.signal(signal.SIGQUIT, signal.SIG_DFL)


@pytest.fixture(scope="session")
def prefect_server(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[prefect_servers.PrefectServer]:
    """A real Prefect server, shared by all tests: use names of your own."""
    server = prefect_servers.PrefectServer(
        tmp_path_factory.mktemp("prefect"), cache=pytestconfig.cache.mkdir("prefect")
    )
    with server:
        yield server


@pytest.fixture
def prefect_client(
    prefect_server: prefect_servers.PrefectServer,
) -> Iterator[client.PrefectClient]:
    """A client of the real Prefect server."""
    connection = transport.Transport(prefect_server.api_url)
    yield client.PrefectClient(connection)
    connection.close()


@pytest.fixture(scope="session")
def server_objects(
    prefect_server: prefect_servers.PrefectServer,
) -> Iterator[prefect_objects.PrefectObjects]:
    """Makes flows, deployments and runs on the real Prefect server."""
    # While flows run, a server on SQLite turns away much of what it is asked, for many seconds.
    patient = retry.RetryPolicy(max_attempts=60, budget_seconds=90.0, longest_pause_seconds=1.5)
    connection = transport.Transport(prefect_server.api_url, retry_policy=patient)
    yield prefect_objects.PrefectObjects(client.PrefectClient(connection))
    connection.close()


@pytest.fixture(scope="session")
def tcp_redis() -> Iterator[redis_server.RedisServer]:
    """A real Valkey server for Celery, with a new database for each stack."""
    # Not pytest's own directory, whose path may be too long for a socket.
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        redis_server.RedisServer(Path(directory)) as server,
    ):
        yield server


@pytest.fixture(scope="session")
def site(
    tmp_path_factory: pytest.TempPathFactory,
    pytestconfig: pytest.Config,
    prefect_server: prefect_servers.PrefectServer,
    tcp_redis: redis_server.RedisServer,
    server_objects: prefect_objects.PrefectObjects,
) -> stack.Site:
    """Where dispatchers under test live."""
    return stack.Site(
        directory=tmp_path_factory.mktemp("stacks"),
        bytecode=pytestconfig.cache.mkdir("prefect") / "pycache",
        api_url=prefect_server.api_url,
        new_redis_url=tcp_redis.new_url,
        objects=server_objects,
    )


@pytest.fixture(scope="session")
def new_stack(site: stack.Site) -> NewStack:
    """Makes a dispatcher, to be used in a ``with`` statement; its processes are the test's choice.

    Positional arguments name its work pools, keyword arguments are settings.
    """
    return lambda *pools, **settings: stack.Stack(site, *pools, **settings)


@pytest.fixture(scope="module")
def proxy(
    prefect_server: prefect_servers.PrefectServer,
) -> Iterator[faulty_proxy.FaultyProxy]:
    """A proxy before the real Prefect server, without faults at first."""
    with faulty_proxy.FaultyProxy(prefect_server.api_url) as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Show what the processes of a failed test's fixtures have written."""
    report = yield
    if report.failed and isinstance(item, pytest.Function):
        for value in item.funcargs.values():
            if isinstance(value, stack.Stack):
                report.sections.append(("processes of the stack", value.logs()))
    return report
