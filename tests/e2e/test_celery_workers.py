"""Worker containers that are killed, cut off and restarted, with pytest-celery's own parts.

Its broker and backend are Redis; its workers run our image. Prefect is one more container, on a
network of its own, so that a worker can be cut off from Redis alone.
"""

from __future__ import annotations

import contextlib
import urllib.request
from collections.abc import Iterator
from typing import Any

import docker
import pytest
import pytest_celery
from docker.models.containers import Container
from docker.models.networks import Network
from pytest_docker_tools import container, fxtr

from dispatcher import errors
from dispatcher.prefect_api import client as clients
from dispatcher.prefect_api import schemas, transport
from dispatcher.testing import prefect_objects
from tests import waiting
from tests.e2e import compose, engine, sample_runs

# Elsewhere it is switched off, since its fixtures have the names of Celery's own.
pytest_plugins = ("pytest_celery.plugin",)

State = schemas.StateType

# What a lost worker's runs wait for at most, by the settings below.
BOUND_SECONDS = 45.0
SERVER_SECONDS = 120.0
PREFECT = "prefect"
API_PORT = "4200/tcp"
POOL = "default"

SETTINGS = {
    "DISPATCHER_WORK_POOLS": POOL,
    "DISPATCHER_POLL_INTERVAL": "1",
    "DISPATCHER_GRACE_SECONDS": "10",
    "PREFECT_API_URL": f"http://{PREFECT}:4200/api",
}


@pytest.fixture(scope="module")
def engine_client() -> Iterator[docker.DockerClient]:
    with contextlib.closing(docker.from_env()) as connected:
        yield connected


@pytest.fixture(scope="module")
def prefect_network(engine_client: docker.DockerClient) -> Iterator[Network]:
    """A network in which Prefect is, and Redis is not."""
    network = engine_client.networks.create(prefect_objects.new_name("prefect"))
    yield network
    network.remove()


@pytest.fixture(scope="module")
def prefect_server(
    engine_client: docker.DockerClient, prefect_network: Network
) -> Iterator[Container]:
    server = engine_client.containers.create(
        engine.OUR_IMAGE,
        ["prefect", "server", "start", "--host", "0.0.0.0"],
        ports={API_PORT: ("127.0.0.1", compose.free_port())},
        healthcheck={"test": ["NONE"]},
    )
    prefect_network.connect(server, aliases=[PREFECT])
    server.start()
    yield server
    server.remove(force=True, v=True)


@pytest.fixture(scope="module")
def objects(prefect_server: Container) -> Iterator[prefect_objects.PrefectObjects]:
    prefect_server.reload()
    [published] = prefect_server.ports[API_PORT] or []
    port = published["HostPort"]
    address = f"http://127.0.0.1:{port}/api"

    def answers() -> bool:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/health"):
            return True
        return False

    waiting.wait_for(answers, seconds=SERVER_SECONDS, every=0.5, what="Prefect answers")
    api = transport.Transport(address)
    yield prefect_objects.PrefectObjects(clients.PrefectClient(api))
    api.close()


@pytest.fixture
def prefect_beside_redis(
    prefect_server: Container, default_pytest_celery_network: Network
) -> Iterator[None]:
    """Prefect in the network of the workers, too."""
    default_pytest_celery_network.connect(prefect_server, aliases=[PREFECT])
    yield
    default_pytest_celery_network.disconnect(prefect_server)


class Worker(pytest_celery.CeleryWorkerContainer):  # type: ignore[misc]
    """A worker of our image that executes flow runs."""

    role = "runs"
    options: tuple[str, ...] = ("--queues", "dispatcher.runs", "--concurrency", "2")

    @classmethod
    def worker_name(cls) -> str:
        return cls.role

    @classmethod
    def worker_queue(cls) -> str:
        return f"dispatcher.{cls.role}"

    @classmethod
    def command(cls, *args: str, **_: Any) -> list[str]:
        name = ("--hostname", f"{cls.role}@%h")
        return ["celery", "-A", "dispatcher", "worker", "-l", "INFO", *name, *cls.options, *args]

    @classmethod
    def initial_env(
        cls, celery_worker_cluster_config: dict[str, Any], initial: dict[str, str] | None = None
    ) -> dict[str, str]:
        [url] = celery_worker_cluster_config["celery_broker_cluster_config"]["urls"]
        return {**SETTINGS, "DISPATCHER_REDIS_URL": url, **(initial or {})}


class Control(Worker):
    """A worker that polls, cancels and recovers, with the schedule in it."""

    role = "control"
    options = ("--queues", "dispatcher.control", "--concurrency", "2", "-B", "-s", "/tmp/schedule")


def worker_container(role: type[Worker]) -> Any:
    return container(
        image=engine.OUR_IMAGE,
        environment=fxtr("default_worker_env"),
        network="{default_pytest_celery_network.name}",
        wrapper_class=role,
        timeout=60,
        command=role.command(),
    )


default_worker_container = worker_container(Worker)
second_worker_container = worker_container(Worker)
control_container = worker_container(Control)


@pytest.fixture
def default_worker_container_cls() -> type[Worker]:
    return Worker


@pytest.fixture
def default_redis_broker_image() -> str:
    return engine.REDIS_IMAGE


@pytest.fixture
def celery_broker_cluster(
    celery_redis_broker: pytest_celery.RedisTestBroker,
) -> Iterator[pytest_celery.CeleryBrokerCluster]:
    cluster = pytest_celery.CeleryBrokerCluster(celery_redis_broker)
    yield cluster
    cluster.teardown()


@pytest.fixture
def celery_backend_cluster() -> None:
    """The dispatcher keeps results where its messages are."""


@pytest.fixture
def celery_worker_cluster(
    prefect_beside_redis: None,
    control_container: Control,
    default_worker_container: Worker,
    second_worker_container: Worker,
    celery_setup_app: Any,
) -> Iterator[pytest_celery.CeleryWorkerCluster]:
    parts = (control_container, default_worker_container, second_worker_container)
    nodes = (pytest_celery.CeleryTestWorker(part, app=celery_setup_app) for part in parts)
    cluster = pytest_celery.CeleryWorkerCluster(*nodes)
    yield cluster
    cluster.teardown()


class Runs(sample_runs.SampleRuns):
    """Also tells where a run executes."""

    def __init__(self, objects: prefect_objects.PrefectObjects) -> None:
        super().__init__(objects)
        waiting.wait_for(self._pool_exists, seconds=30, what="the work pool exists")

    def start(self, flow: str = "long_running", **parameters: Any) -> schemas.FlowRun:
        return self.run(self.deployment(flow, pool=POOL), **parameters)

    def host(self, run: schemas.FlowRun) -> str:
        """The host name of the container in which a run executes."""
        return self._infrastructure_pid(run).partition(":")[0]

    def pid(self, run: schemas.FlowRun) -> str:
        """The id of a run's process in its container."""
        return self._infrastructure_pid(run).partition(":")[2]

    def _infrastructure_pid(self, run: schemas.FlowRun) -> str:
        pid = self.objects.client.read_flow_run(run.id).infrastructure_pid
        assert pid is not None
        return pid

    def _pool_exists(self) -> bool:
        with contextlib.suppress(errors.ObjectNotFound):
            return bool(self.objects.client.read_work_pool(POOL).base_job_template)
        return False


@pytest.fixture
def runs(
    celery_setup: pytest_celery.CeleryTestSetup, objects: prefect_objects.PrefectObjects
) -> Runs:
    return Runs(objects)


def worker_at(setup: pytest_celery.CeleryTestSetup, host: str) -> pytest_celery.CeleryTestWorker:
    """The worker whose container has this host name."""
    return next(node for node in setup.worker_cluster if node.container.id.startswith(host))


def test_a_killed_workers_run_is_crashed_in_time_and_the_restarted_worker_serves(
    celery_setup: pytest_celery.CeleryTestSetup, runs: Runs
) -> None:
    lost = runs.start(seconds=300)
    runs.wait_for(lost, State.RUNNING)
    worker = worker_at(celery_setup, runs.host(lost))
    worker.kill()
    runs.wait_for(lost, State.CRASHED, seconds=BOUND_SECONDS)
    assert worker.hostname() in (runs.state(lost).message or "")
    worker.restart()
    others = [runs.start("hello") for _ in range(4)]  # as many as both workers have slots
    for run in others:
        runs.wait_for(run, State.COMPLETED)
        assert runs.starts(run) == 1


def test_a_worker_cut_off_from_redis_loses_its_run_once_and_stops_it_when_it_is_back(
    celery_setup: pytest_celery.CeleryTestSetup,
    runs: Runs,
    prefect_network: Network,
    default_pytest_celery_network: Network,
) -> None:
    begun = runs.start(seconds=300)
    runs.wait_for(begun, State.RUNNING)
    cut_off = worker_at(celery_setup, runs.host(begun)).container
    prefect_network.connect(cut_off.id)
    default_pytest_celery_network.disconnect(cut_off.id)
    try:
        meanwhile = runs.start("hello")
        runs.wait_for(meanwhile, State.COMPLETED)
        assert not cut_off.id.startswith(runs.host(meanwhile))
        runs.wait_for(begun, State.CRASHED, seconds=BOUND_SECONDS)
        assert "stopped renewing its lease" in (runs.state(begun).message or "")
    finally:
        default_pytest_celery_network.connect(cut_off.id)
        prefect_network.disconnect(cut_off.id)
    waiting.wait_for(
        lambda: cut_off.exec_run(["test", "-d", f"/proc/{runs.pid(begun)}"]).exit_code,
        seconds=BOUND_SECONDS,
        what="its process is stopped",
    )
    assert [runs.starts(run) for run in (begun, meanwhile)] == [1, 1]
    assert runs.state(begun).type is State.CRASHED


def test_a_redis_that_comes_back_empty_costs_no_run(
    celery_setup: pytest_celery.CeleryTestSetup, runs: Runs
) -> None:
    begun = runs.start(seconds=20)
    runs.wait_for(begun, State.RUNNING)
    celery_setup.broker.restart()  # it keeps nothing on disk
    later = runs.start("hello")
    runs.wait_completed_once([begun, later])
