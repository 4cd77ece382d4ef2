"""The servers that every contract test runs on: the fake, the fake over HTTP, a real one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from dispatcher.prefect_api import client, schemas, transport
from dispatcher.testing import prefect_api, prefect_objects
from tests import prefect_server as prefect_servers

AUTH_STRING = "admin:p@ss word:/?"


@pytest.fixture(scope="session")
def fake_prefect() -> prefect_api.FakePrefect:
    return prefect_api.FakePrefect()


@pytest.fixture(scope="session", params=["fake", "fake-http", "server"])
def api(request: pytest.FixtureRequest) -> Iterator[transport.Transport]:
    """A transport to each of the servers in turn."""
    if request.param == "server":
        connection = transport.Transport(request.getfixturevalue("prefect_server").api_url)
        yield connection
        connection.close()
        return
    fake: prefect_api.FakePrefect = request.getfixturevalue("fake_prefect")
    if request.param == "fake":
        yield fake.transport()
        return
    with fake.serve() as api_url:
        connection = transport.Transport(api_url)
        yield connection
        connection.close()


@pytest.fixture(scope="session")
def secured_server(
    tmp_path_factory: pytest.TempPathFactory, pytestconfig: pytest.Config
) -> Iterator[prefect_servers.PrefectServer]:
    """A real server that asks for a password and for CSRF tokens."""
    server = prefect_servers.PrefectServer(
        tmp_path_factory.mktemp("secured"),
        cache=pytestconfig.cache.mkdir("prefect"),
        environment={
            "PREFECT_SERVER_API_AUTH_STRING": AUTH_STRING,
            "PREFECT_SERVER_CSRF_PROTECTION_ENABLED": "true",
        },
    )
    with server:
        yield server


@pytest.fixture(scope="session")
def prefect(api: transport.Transport) -> client.PrefectClient:
    return client.PrefectClient(api)


@pytest.fixture(scope="session")
def objects(prefect: client.PrefectClient) -> prefect_objects.PrefectObjects:
    return prefect_objects.PrefectObjects(prefect)


@pytest.fixture(scope="session")
def shared_deployment(objects: prefect_objects.PrefectObjects) -> schemas.Deployment:
    """A deployment for tests that need runs and nothing else; to a pool that nobody polls."""
    return objects.deployment(objects.pool().name)


@pytest.fixture
def pool(objects: prefect_objects.PrefectObjects) -> schemas.WorkPool:
    """A work pool of the test's own."""
    return objects.pool()


@pytest.fixture
def deployment(
    objects: prefect_objects.PrefectObjects, pool: schemas.WorkPool
) -> schemas.Deployment:
    """A deployment to the test's own pool."""
    return objects.deployment(pool.name)
