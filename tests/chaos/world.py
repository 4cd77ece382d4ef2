"""The machinery under fire: a Prefect server, Valkey, Celery workers and beats, each killable."""

from __future__ import annotations

import contextlib
import itertools
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import psutil

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import client, retry, transport
from dispatcher.testing import prefect_objects
from tests import clocks, faulty_proxy, rabbitmq_server, redis_server, redis_topologies, stack
from tests import prefect_server as prefect_servers
from tests.chaos import pauses

# Everything at short intervals, so that what has to be waited for is soon over.
LEASE_SECONDS = 5.0
GRACE_SECONDS = 3.0
SETTINGS = {
    "DISPATCHER_POLL_INTERVAL": "1",
    "DISPATCHER_CANCEL_INTERVAL": "0.5",
    "DISPATCHER_RECOVER_INTERVAL": "1",
    "DISPATCHER_LEASE_SECONDS": str(LEASE_SECONDS),
    "DISPATCHER_GRACE_SECONDS": str(GRACE_SECONDS),
    # A pool that was deleted is made again by then.
    "DISPATCHER_HEARTBEAT_INTERVAL": "3",
}
# After a Redis that was away or lost its data, recovery waits for a whole lease again.
REDIS_AFTERMATH_SECONDS = 13.0
# Workers find their broker again within seconds, and what it has lost is sent again.
BROKER_AFTERMATH_SECONDS = 13.0
# Runs that wait for a deployment's concurrency slot look for it again after so many seconds.
SLOT_WAIT_SECONDS = 3

HOSTS = Path(__file__).parent / "hosts"

# In the environment of every process of every job.
MARKS_VARIABLE = "CHAOS_MARKS"
# The pools of the worker that executes it.
POOLS_VARIABLE = "CHAOS_POOLS"


class KeepingRedis(redis_server.RedisServer):
    """A Valkey server whose data outlive it."""

    def _command(self) -> list[str]:
        return [*super()._command(), "--appendonly", "yes", "--dir", str(self.directory)]


@dataclass
class Position:
    """A place of the fleet that is always filled again; ``busy`` while a fault is at work on it."""

    name: str
    arguments: tuple[str, ...]
    is_worker: bool
    serves_control: bool = False
    incarnations: list[stack.CeleryProcess] = field(default_factory=list)
    busy: bool = False

    @property
    def process(self) -> stack.CeleryProcess:
        """Who fills it now."""
        return self.incarnations[-1]

    @property
    def is_ready(self) -> bool:
        """Whether it is filled by a worker that has started, and no fault is at work on it."""
        return not self.busy and self.process.is_running and " ready." in self.process.text()

    def pool_children(self) -> list[psutil.Process]:
        """The worker's processes that execute tasks."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(self.process.pid).children()
        return []

    def tree(self, *, jobs: bool) -> list[psutil.Process]:
        """The worker and its pool, with all that they have started or without."""
        try:
            main = psutil.Process(self.process.pid)
            return [main, *main.children(recursive=jobs)]
        except psutil.Error:
            return []


class World:
    """Starts everything; a context manager that ends it all and finds what is left behind.

    The dispatcher speaks to Prefect through a proxy that can fail; its jobs do so directly. With
    ``hosts`` each worker believes to be on a host of its own, and in ``skews`` some workers have
    clocks that are so many seconds fast. Of the two pools with most of the runs, some workers serve
    the one, some the other and one both. The third pool is one that may be deleted, and
    ``elsewhere`` one that is not served.
    """

    def __init__(
        self,
        directory: Path,
        cache: Path,
        *,
        workers: int,
        on_shutdown: str,
        start: str,
        hosts: bool,
        broker: str,
        skews: Mapping[str, int],
    ) -> None:
        self.directory = directory
        self.hosts = hosts
        self.broker = broker
        self.rabbitmq: rabbitmq_server.RabbitMQServer | None = None
        self.skews = skews
        self.start = start
        self.marks = directory / "marks"
        self.marks.mkdir()
        self._settings = {
            **SETTINGS,
            "DISPATCHER_ON_SHUTDOWN": on_shutdown,
            "DISPATCHER_START": start,
        }
        self._cache = cache
        self._exit = contextlib.ExitStack()
        self.positions = [
            self._worker("control", "-Q", tasks.CONTROL_QUEUE, "-P", "threads", "-c", "2"),
            self._worker("both", "--concurrency", "6"),
            *(
                self._worker(f"runs-{number}", "-Q", tasks.RUNS_QUEUE, "-c", "5", "-P", pool)
                for number, pool in zip(
                    range(1, workers - 1), itertools.cycle(("threads", "prefork")), strict=False
                )
            ),
            Position("beat-1", ("beat",), is_worker=False),
            Position("beat-2", ("beat",), is_worker=False),
        ]
        self.pauses: list[pauses.Pause] = []
        self._unattended: pauses.Pause | None = None

    @staticmethod
    def _worker(name: str, *options: str) -> Position:
        serves_control = not name.startswith("runs")
        return Position(name, ("worker", *options), is_worker=True, serves_control=serves_control)

    @property
    def redis_busy(self) -> bool:
        """Whether a fault is at work on Redis."""
        return any(pause.what == "Redis" and not pause.is_over for pause in self.pauses)

    @property
    def prefect_busy(self) -> bool:
        """Whether a fault is at work on Prefect, or on the way there."""
        return any(pause.what == "Prefect" and not pause.is_over for pause in self.pauses)

    @property
    def broker_busy(self) -> bool:
        """Whether a fault is at work on a broker that is not Redis."""
        return any(pause.what == "broker" and not pause.is_over for pause in self.pauses)

    def pause_of_broker(self) -> pauses.Pause:
        """Note that the broker is struck."""
        return self._pause("broker", aftermath=BROKER_AFTERMATH_SECONDS)

    def pause_of_redis(self) -> pauses.Pause:
        """Note that Redis is struck."""
        return self._pause("Redis", aftermath=REDIS_AFTERMATH_SECONDS)

    def pause_of_prefect(self) -> pauses.Pause:
        """Note that Prefect is struck."""
        return self._pause("Prefect")

    def occupy(self, position: Position) -> None:
        """Note that a position is struck."""
        position.busy = True
        if self._unattended is None and all(
            each.busy for each in self.positions if each.serves_control
        ):
            # Nobody may have seen the ledger meanwhile, which recovery takes for an outage of it.
            self._unattended = self._pause("control", aftermath=REDIS_AFTERMATH_SECONDS)

    def release(self, position: Position) -> None:
        """Note that a position is itself again."""
        position.busy = False

    def _pause(self, what: str, *, aftermath: float = 0.0) -> pauses.Pause:
        pause = pauses.Pause(what, aftermath)
        self.pauses.append(pause)
        return pause

    def __enter__(self) -> Self:
        with contextlib.ExitStack() as exits:
            (self.directory / "redis").mkdir()
            self.redis = exits.enter_context(self._new_redis(self.directory / "redis"))
            if self.broker == "rabbitmq":
                (self.directory / "rabbitmq").mkdir()
                self.rabbitmq = exits.enter_context(
                    rabbitmq_server.RabbitMQServer(self.directory / "rabbitmq")
                )
                self._settings["DISPATCHER_BROKER_URL"] = self.rabbitmq.new_url()
            self.prefect = exits.enter_context(self._new_prefect())
            self.proxy = exits.enter_context(faulty_proxy.FaultyProxy(self.prefect.api_url))
            self.objects = exits.enter_context(self.new_objects(retry.RetryPolicy()))
            names = [prefect_objects.new_name(name) for name in ("pool", "side", "doomed")]
            self.stack = stack.Stack(
                self._site(), *names, api_url=self.proxy.api_url, **self._settings
            )
            exits.callback(self.stack.stop)
            self.elsewhere = self.objects.pool().name
            for position in self.positions:
                self.fill(position)
            for pool in self.stack.pools:
                self.stack.wait_until_served(pool)
            self._exit = exits.pop_all()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._exit.close()

    @contextlib.contextmanager
    def new_objects(self, policy: retry.RetryPolicy) -> Iterator[prefect_objects.PrefectObjects]:
        """A client that asks the server directly."""
        connection = transport.Transport(
            self.prefect.api_url, timeout_seconds=20.0, retry_policy=policy
        )
        yield prefect_objects.PrefectObjects(client.PrefectClient(connection))
        connection.close()

    def fill(self, position: Position) -> None:
        """Start a position's process, without waiting for it. To be called by one thread alone."""
        arguments = [*position.arguments, "--loglevel", "INFO"]
        if position.is_worker:
            arguments += ["--hostname", self.stack.node(position.name)]
        else:
            arguments += ["--schedule", str(self.directory / f"{position.name}-schedule")]
        environment = dict(self.stack.environment)
        if self.hosts and position.is_worker:
            environment |= {"CHAOS_HOST": f"host-{position.name}", "PYTHONPATH": str(HOSTS)}
        if position.name in self.skews:
            # Forks of a server would have its clock, and the marks of jobs are compared by time.
            environment |= clocks.wrong_clock(self.skews[position.name])
            environment |= {"DISPATCHER_START": "cold"}
        pools = ",".join(self.pools_of(position))
        environment |= {"DISPATCHER_WORK_POOLS": pools, POOLS_VARIABLE: pools}
        name = f"{position.name}.{len(position.incarnations)}"
        process = stack.CeleryProcess(name, arguments, environment, self.stack.directory)
        self.stack.processes.append(process)
        position.incarnations.append(process)

    def pools_of(self, position: Position) -> list[str]:
        """The work pools that a position serves."""
        first, second, doomed = self.stack.pools
        if position.serves_control or not position.is_worker:
            return [first, second, doomed]
        number = int(position.name.partition("-")[2])
        return [first if number % 2 else second, doomed]

    def refill(self, position: Position) -> None:
        """Start a position's process again, unless it lives."""
        if not position.process.is_running:
            self.fill(position)

    def supervise(self) -> None:
        """Start again what has ended by itself, as whoever runs it in production does.

        Celery ends a worker whose pool child is killed while it starts.
        """
        for position in self.positions:
            if not position.busy:
                self.refill(position)
        control = [each for each in self.positions if each.serves_control]
        if self._unattended is not None and any(each.is_ready for each in control):
            self._unattended.end()
            self._unattended = None

    @property
    def workers(self) -> list[Position]:
        """The workers' positions."""
        return [position for position in self.positions if position.is_worker]

    def job_processes(self) -> list[psutil.Process]:
        """Every process of every job that is alive."""
        return [process for process in psutil.process_iter() if self._is_of_job(process)]

    def _is_of_job(self, process: psutil.Process) -> bool:
        try:
            return (
                process.environ().get(MARKS_VARIABLE) == str(self.marks)
                and process.status() != psutil.STATUS_ZOMBIE
            )
        except psutil.Error:
            return False

    def _new_redis(self, directory: Path) -> Any:
        if self.broker == "sentinel":
            return redis_topologies.Watched(directory, replicas=2, fenced=True)
        return KeepingRedis(directory)

    def _new_prefect(self) -> prefect_servers.PrefectServer:
        wait = str(SLOT_WAIT_SECONDS)
        return prefect_servers.PrefectServer(
            self.directory / "prefect",
            cache=self._cache,
            environment={"PREFECT_SERVER_DEPLOYMENTS_CONCURRENCY_SLOT_WAIT_SECONDS": wait},
        )

    def _site(self) -> stack.Site:
        return stack.Site(
            directory=self.directory,
            bytecode=self._cache / "pycache",
            api_url=self.prefect.api_url,
            new_redis_url=self.redis.new_url,
            objects=self.objects,
        )


def signal_all(processes: list[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to every process that is still there."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
