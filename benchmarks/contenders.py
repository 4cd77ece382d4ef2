"""The two sides that serve a work pool: this dispatcher's processes, and Prefect's own worker."""

from __future__ import annotations

import functools
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import executors
from benchmarks import site as sites
from dispatcher.celery_app import tasks
from dispatcher.ledger import fleet, keys
from dispatcher.prefect_api import client
from dispatcher.standalone import celery, process
from dispatcher.standalone.component import Component, StopStep

READY_SECONDS = 120.0
# Before these a worker has finished what it runs, as every benchmark waits for its runs.
STOP = (StopStep(signal.SIGTERM, 20.0), StopStep(signal.SIGQUIT, 10.0))

PREFECT_WORKER = "prefect-worker"


class Dispatcher:
    """This dispatcher: a control worker, beat, and any number of workers that execute runs.

    ``settings`` are environment variables; what they do not name has its default. Each has a
    database of its own in the site's Redis, so one may follow the other.
    """

    def __init__(
        self,
        site: sites.Site,
        *,
        api_url: str,
        pool: str,
        settings: Mapping[str, str] | None = None,
        database: int = 0,
        broker_url: str | None = None,
    ) -> None:
        self._site = site
        self.pool = pool
        self.redis_url = site.redis_database(database)
        self.broker_url = broker_url or self.redis_url
        self.redis = site.connect_redis(database)
        self.fleet = fleet.Fleet(self.redis)
        self.processes: list[process.Process] = []
        self._environment = {
            **site.environment,
            "DISPATCHER_REDIS_URL": self.redis_url,
            **({"DISPATCHER_BROKER_URL": broker_url} if broker_url else {}),
            "DISPATCHER_WORK_POOLS": pool,
            "PREFECT_API_URL": api_url,
            "PREFECT_HOME": str(site.directory / "prefect-home"),
            **(settings or {}),
        }
        self._own = celery.CeleryProcesses(self._environment, site.directory, self.redis_url)

    @property
    def roots(self) -> list[int]:
        """The pids to sample."""
        return sites.roots(self.processes)

    def start(self, concurrency: int) -> None:
        """Start all, as ``dispatcher standalone`` does, and wait until all are ready."""
        self.start_control()
        self.start_workers(1, concurrency)

    def start_control(self) -> process.Process:
        """Start the control worker and beat; return the former."""
        control = self._launch(self._own.control_worker(lambda: True))
        beat = self._launch(self._own.beat(self._site.directory / f"beat-{control.pid}"))
        self._await([control, beat])
        return control

    def start_workers(
        self, count: int, concurrency: int, *, pool: str = "prefork"
    ) -> list[process.Process]:
        """Start workers that execute runs; ``pool`` is Celery's word for how they do."""
        first = len(self.processes)
        started = [
            self._launch(self._worker(f"runs-{first + number}", concurrency, pool))
            for number in range(count)
        ]
        self._await(started)
        return started

    def stop(self) -> None:
        """Stop all, the last started first."""
        for each in reversed(self.processes):
            each.stop()

    def open_claims(self) -> int:
        """How many claims use a slot now."""
        count: int = self.redis.zcard(f"{keys.PREFIX}open")
        return count

    def messages(self) -> int:
        """How many claimed runs no worker has taken yet."""
        count: int = self.redis.llen(tasks.RUNS_QUEUE)
        return count

    def _launch(self, component: Component) -> process.Process:
        launched = self._site.launch(component)
        self.processes.append(launched)
        return launched

    def _await(self, launched: list[process.Process]) -> None:
        for each in launched:
            self._site.await_ready(each)

    def _worker(self, name: str, concurrency: int, pool: str) -> Component:
        node = f"{name}@{socket.gethostname()}"
        size = ("--concurrency", str(concurrency), "--pool", pool)
        options = ("--queues", tasks.RUNS_QUEUE, *size)
        python = (sys.executable, "-m", "celery", "-A", "dispatcher")
        return Component(
            name=name,
            command=(*python, "worker", "--loglevel", "INFO", "--hostname", node, *options),
            environment=self._environment,
            directory=self._site.directory,
            is_ready=functools.partial(self._reports, node),
            ready_seconds=READY_SECONDS,
            stop=STOP,
        )

    def _reports(self, node: str) -> bool:
        return any(each.name == node for each in self.fleet.nodes())


class PrefectWorker:
    """Prefect's process worker; ``settings`` as above."""

    def __init__(
        self,
        site: sites.Site,
        *,
        api: client.PrefectClient,
        pool: str,
        settings: Mapping[str, str] | None = None,
    ) -> None:
        self._site = site
        self._api = api
        self.pool = pool
        self.name = ""
        self.processes: list[process.Process] = []
        self._environment = {
            **site.environment,
            "PREFECT_API_URL": api.transport.api_url,
            "PREFECT_HOME": str(site.directory / "prefect-home"),
            **(settings or {}),
        }

    @property
    def roots(self) -> list[int]:
        """The pids to sample."""
        return sites.roots(self.processes)

    def start(self, concurrency: int) -> None:
        """Start it and wait until the server shows it."""
        self.name = f"{PREFECT_WORKER}-{len(self._api.read_workers(self.pool))}"
        options = ("--pool", self.pool, "--type", "process", "--limit", str(concurrency))
        component = Component(
            name=self.name,
            command=prefect_command("worker", "start", *options, "--name", self.name),
            environment=self._environment,
            directory=self._site.directory,
            is_ready=self._is_online,
            ready_seconds=READY_SECONDS,
            stop=STOP,
        )
        launched = self._site.launch(component)
        self.processes.append(launched)
        self._site.await_ready(launched)

    def stop(self) -> None:
        """Stop it."""
        for each in self.processes:
            each.stop()

    def _is_online(self) -> bool:
        workers = self._api.read_workers(self.pool)
        return any(each.name == self.name and each.status == "ONLINE" for each in workers)


@contextmanager
def serving(side: Dispatcher | PrefectWorker, concurrency: int) -> Iterator[None]:
    """Have a side serve its pool while the context lasts."""
    try:
        side.start(concurrency)
        yield
    finally:
        side.stop()


def prefect_command(*arguments: str) -> tuple[str, ...]:
    """Prefect's command line, of the environment that we run in."""
    return (sys.executable, "-m", "prefect", *arguments)


def plugin(site: sites.Site, name: str, target: str) -> dict[str, str]:
    """The setting that lets the dispatcher's processes find one more executor."""
    directory = site.directory / f"plugin-{name}"
    if not directory.exists():
        sites.install_entry_point(directory, executors.ENTRY_POINT_GROUP, name, target)
    return {"PYTHONPATH": f"{directory}:{site.environment['PYTHONPATH']}"}
