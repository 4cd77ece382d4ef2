"""Fixtures for the tests of the core: a real Valkey, and a Prefect API in memory."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_library

from dispatcher.ledger import redis_ledger
from dispatcher.prefect_api import client
from dispatcher.testing import prefect_api, prefect_objects
from tests import redis_server, valkey


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[redis_server.RedisServer]:
    """A Valkey server, shared by all tests."""
    # Not pytest's own directory, whose path may be too long for a socket.
    with (
        tempfile.TemporaryDirectory(prefix="valkey-") as directory,
        redis_server.RedisServer(Path(directory)) as server,
    ):
        yield server


@pytest.fixture
def redis(valkey_server: redis_server.RedisServer) -> Iterator[redis_library.Redis]:
    """A client of the Valkey server, which is empty at first."""
    connection = valkey_server.client()
    connection.flushall()
    yield connection
    connection.close()


@pytest.fixture
def no_redis(tmp_path: Path) -> Iterator[redis_library.Redis]:
    """A client of a server that is away."""
    connection = valkey.connect(str(tmp_path / "none.sock"))
    yield connection
    connection.close()


@pytest.fixture
def book(redis: redis_library.Redis) -> redis_ledger.RedisLedger:
    """An empty ledger."""
    return redis_ledger.RedisLedger(redis)


@pytest.fixture
def prefect() -> prefect_api.FakePrefect:
    """A Prefect API that behaves like a server."""
    return prefect_api.FakePrefect()


@pytest.fixture
def api(prefect: prefect_api.FakePrefect) -> Iterator[client.PrefectClient]:
    """A client of it, which repeats failed requests without waiting."""
    connection = prefect.client(sleep=lambda _seconds: None)
    yield connection
    connection.transport.close()


@pytest.fixture
def objects(api: client.PrefectClient) -> prefect_objects.PrefectObjects:
    """Makes flows, deployments and runs on it."""
    return prefect_objects.PrefectObjects(api)
