"""A dispatcher under test: real Celery processes on a real Redis and a real Prefect server."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, Self
from uuid import UUID, uuid4

import celery
import psutil
from kombu import Queue

from dispatcher import errors
from dispatcher.celery_app import configuration, tasks
from dispatcher.ledger import claims, fleet, keys, redis_connection, redis_ledger
from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects
from tests import tether, waiting

FLOWS = Path(__file__).parent / "flows"

READY_SECONDS = 60.0
RUN_SECONDS = 120.0  # a cold engine takes 5 s on an idle machine
STOP_SECONDS = 15.0
VANISH_SECONDS = 10.0

# In the environment of every process of a stack, those of its jobs included.
MARKER = "TEST_STACK"

# What a stack does unless a test says otherwise: quicker ticks than a user needs.
SETTINGS = {
    "DISPATCHER_POLL_INTERVAL": "1",
    "DISPATCHER_CANCEL_INTERVAL": "2",
    "DISPATCHER_HEARTBEAT_INTERVAL": "5",
    "DISPATCHER_GRACE_SECONDS": "10",
}

# What nobody misses in the log of a failed test.
# A worker that tests only make believe.
GONE = "gone@test"
NOISE = ("HTTP Request: POST", "Sending due task", "Task dispatcher.cancel", "Task dispatcher.poll")

# What whoever runs the tests may choose for all stacks.
PASSED_ON = ("DISPATCHER_START", "DISPATCHER_PYTHON")

_NOT_INHERITED = ("PREFECT_", "DISPATCHER_", "CELERY_", "FLOWER_", "BROKER_", "RESULT_")


@dataclasses.dataclass(frozen=True)
class Site:
    """What stacks share; ``bytecode`` keeps compiled modules from one test session to the next."""

    directory: Path
    bytecode: Path
    api_url: str
    new_redis_url: Callable[[], str]
    objects: prefect_objects.PrefectObjects

    def environment(self, marker: str, directory: Path) -> dict[str, str]:
        """The environment of a process, without any setting of the dispatcher's."""
        inherited = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_NOT_INHERITED) and name != "PYTHONDONTWRITEBYTECODE"
        }
        return {
            **inherited,
            MARKER: marker,
            "PYTHONPYCACHEPREFIX": str(self.bytecode),
            "PREFECT_HOME": str(self.directory / "prefect-home"),
            "TMPDIR": str(directory),
        }


class CeleryProcess:
    """One ``celery -A dispatcher …``, its output in a file."""

    def __init__(
        self, name: str, arguments: Sequence[str], environment: Mapping[str, str], directory: Path
    ) -> None:
        self.name = name
        self.log = directory / f"{name}.log"
        command = [sys.executable, "-m", "celery", "-A", "dispatcher", *arguments]
        with self.log.open("ab") as output:
            self._process = subprocess.Popen(
                tether.command(command),
                env=dict(environment),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def is_running(self) -> bool:
        return self._process.poll() is None

    def text(self) -> str:
        """What it has written."""
        return self.log.read_text(errors="replace")

    def wait_for_text(self, words: str, *, seconds: float = READY_SECONDS) -> None:
        """Wait until it has written these words."""

        def found() -> bool:
            if words in self.text():
                return True
            assert self.is_running, f"{self.name} ended:\n{self.text()[-4000:]}"
            return False

        waiting.wait_for(found, seconds=seconds, what=f"{self.name} writes {words!r}")

    def send_signal(self, number: signal.Signals) -> None:
        """Send a signal to it alone, not to its children."""
        self._process.send_signal(number)

    def wait(self, seconds: float = STOP_SECONDS) -> int:
        """Wait for its end and return the exit code; raises ``subprocess.TimeoutExpired``."""
        return self._process.wait(seconds)

    def stop(self, seconds: float = STOP_SECONDS) -> int:
        """Ask it to end, and kill it if it does not; return the exit code."""
        try:
            self.send_signal(signal.SIGTERM)
            return self.wait(seconds)
        except subprocess.TimeoutExpired:
            self.send_signal(signal.SIGKILL)
            return self.wait()


class Run:
    """A flow run and what it has left behind."""

    def __init__(
        self, objects: prefect_objects.PrefectObjects, flow_run: schemas.FlowRun, report: Path
    ) -> None:
        self.objects = objects
        self.flow_run = flow_run
        self.report = report

    @property
    def id(self) -> UUID:
        return self.flow_run.id

    def read(self) -> schemas.FlowRun:
        """The run as it is now."""
        return self.objects.client.read_flow_run(self.id)

    @property
    def state(self) -> schemas.State:
        """The state that it is in."""
        state = self.read().state
        assert state is not None
        return state

    def states(self) -> list[schemas.State]:
        """Its history, oldest first."""
        return self.objects.states(self.id)

    def history(self) -> list[str]:
        """The types of its states, oldest first."""
        return [state.type.value for state in self.states()]

    def entered(self, state_type: schemas.StateType) -> float:
        """When it first entered a state of this type, in seconds since the epoch."""
        state = next(state for state in self.states() if state.type is state_type)
        assert state.timestamp is not None
        return state.timestamp.timestamp()

    def log_messages(self) -> list[str]:
        """What is in the log on its page, the oldest first."""
        body = {
            "logs": {"flow_run_id": {"any_": [str(self.id)]}},
            "sort": "TIMESTAMP_ASC",
            "limit": 200,
        }
        rows: list[Any] = self.objects.client.transport.request("POST", "/logs/filter", json=body)
        return [str(row["message"]) for row in rows]

    def lines(self) -> list[str]:
        """What its flow has written into the report."""
        return self.report.read_text().splitlines() if self.report.exists() else []

    def wait_for_line(self, start: str) -> str:
        """Wait until its flow has written a line that begins so."""
        return waiting.wait_for(
            lambda: next((line for line in self.lines() if line.startswith(start)), ""),
            seconds=RUN_SECONDS,
            what=f"flow run {self.id} reports {start!r}",
        )

    def wait_for_state(
        self, *types: schemas.StateType, seconds: float = RUN_SECONDS
    ) -> schemas.State:
        """Wait until it is in a state of one of these types."""
        waiting.wait_for(
            lambda: self.state.type in types,
            seconds=seconds,
            every=0.2,
            what=f"flow run {self.id} is {' or '.join(types)}",
        )
        return self.state

    def wait_for_end(self, *, seconds: float = RUN_SECONDS) -> schemas.State:
        """Wait until it is over, and return its last state."""
        waiting.wait_for(
            lambda: self.state.is_terminal and not self.state.is_cancelling,
            seconds=seconds,
            every=0.2,
            what=f"flow run {self.id} ends",
        )
        return self.state

    def cancel(self) -> None:
        """Ask for its cancellation as Prefect's UI does."""
        self.objects.propose(self.id, schemas.StateType.CANCELLING)


class Stack:
    """Celery processes with one Redis database and one set of settings.

    ``api_url`` is where the processes find Prefect, if not directly at the server; the jobs always
    find it there. On the way out nothing of the stack may be left, which is checked.
    """

    def __init__(
        self,
        site: Site,
        *pools: str,
        api_url: str | None = None,
        redis_url: str | None = None,
        **settings: str,
    ) -> None:
        self.site = site
        self.objects = site.objects
        self.pools = pools or (prefect_objects.new_name("pool"),)
        self.processes: list[CeleryProcess] = []
        self.redis_url = redis_url or site.new_redis_url()
        self._marker = uuid4().hex
        self.directory = site.directory / self._marker[:8]
        self.directory.mkdir()
        self._through_proxy = api_url is not None
        self.environment = {
            **site.environment(self._marker, self.directory),
            **SETTINGS,
            **{name: os.environ[name] for name in PASSED_ON if name in os.environ},
            "PREFECT_API_URL": api_url or site.api_url,
            "DISPATCHER_REDIS_URL": self.redis_url,
            "DISPATCHER_WORK_POOLS": ",".join(self.pools),
            **settings,
        }
        broker = settings.get("DISPATCHER_BROKER_URL", self.redis_url)
        self.celery = celery.Celery(
            "tests", broker=configuration.celery_url(broker), set_as_current=False
        )
        self.celery.conf.broker_transport_options = configuration.sentinel_options(broker)
        self.celery.conf.update(configuration.sentinel_tls(broker))
        namespace = settings.get("DISPATCHER_NAMESPACE", keys.DEFAULT_NAMESPACE)
        prefix = keys.prefix_of(namespace)
        self.redis = redis_connection.connect_redis(self.redis_url, prefix=prefix)
        if namespace != keys.DEFAULT_NAMESPACE:
            self.celery.conf.broker_transport_options = {"global_keyprefix": prefix}
        self.ledger = redis_ledger.RedisLedger(self.redis, prefix=prefix)

    @property
    def pool(self) -> str:
        """The first work pool."""
        return self.pools[0]

    # Processes

    def start(
        self, name: str, *arguments: str, settings: Mapping[str, str] | None = None
    ) -> CeleryProcess:
        """Start ``celery -A dispatcher`` with these arguments and do not wait for anything."""
        environment = {**self.environment, "EXECUTED_BY": name, **(settings or {})}
        process = CeleryProcess(name, arguments, environment, self.directory)
        self.processes.append(process)
        return process

    def worker(
        self,
        name: str = "worker",
        *options: str,
        pools: Sequence[str] = (),
        settings: Mapping[str, str] | None = None,
    ) -> CeleryProcess:
        """Start a worker, with some work pools of its own if any, and wait until it is ready."""
        named = ("--loglevel", "INFO", "--hostname", self.node(name))
        own = {"DISPATCHER_WORK_POOLS": ",".join(pools)} if pools else {}
        worker = self.start(name, "worker", *named, *options, settings={**own, **(settings or {})})
        worker.wait_for_text(" ready.")
        return worker

    def node(self, name: str) -> str:
        """Celery's name of a worker."""
        return f"{name}-{self._marker[:8]}@test"

    def beat(self, name: str = "beat") -> CeleryProcess:
        """Start a beat."""
        schedule = self.directory / f"{name}-schedule"
        return self.start(name, "beat", "--loglevel", "INFO", "--schedule", str(schedule))

    def worker_with_beat(self, concurrency: int) -> CeleryProcess:
        """Start the smallest dispatcher: one worker that is everything."""
        schedule = str(self.directory / "schedule")
        return self.worker("worker", "-B", "-s", schedule, "--concurrency", str(concurrency))

    def control_worker(self) -> CeleryProcess:
        """Start a worker of threads for control work alone, with beat."""
        schedule = str(self.directory / "schedule")
        threads = ("-P", "threads", "-c", "2")
        return self.worker("control", "-Q", tasks.CONTROL_QUEUE, *threads, "-B", "-s", schedule)

    def seem_to_have(self, slots: int) -> fleet.Node:
        """Have so many slots counted of a worker that has gone and takes no message."""
        gone = fleet.Node(GONE, 1, slots, serves_control=False, version="1", pools=self.pools)
        fleet.Fleet(self.redis).report(gone, lifetime_seconds=600)
        return gone

    def bring_late(self, node: str) -> None:
        """Have a worker get what was meant for the one that only seemed to be there."""
        meant = tasks.node_queue(GONE)
        if self.redis.exists(meant):
            self.redis.rename(meant, tasks.node_queue(self.node(node)))

    def pool_exists(self, pool: str) -> bool:
        """Whether Prefect has such a work pool."""
        try:
            self.objects.client.read_work_pool(pool)
        except errors.ObjectNotFound:
            return False
        return True

    def wait_until_served(self, pool: str) -> schemas.Worker:
        """Wait until a pool exists and shows that a worker is there."""
        waiting.wait_for(
            lambda: self._online_workers(pool),
            seconds=READY_SECONDS,
            every=0.2,
            what=f"work pool {pool} has a worker",
        )
        return self._online_workers(pool)[0]

    def stop(self) -> None:
        """End every process; fails if a job or a child outlives them."""
        for process in reversed(self.processes):
            if process.is_running:
                process.stop()
        self.redis.close()
        self.celery.close()
        try:
            waiting.wait_for(
                lambda: not list(self._left()),
                seconds=VANISH_SECONDS,
                what="no process outlives its dispatcher",
            )
        finally:
            for survivor in self._left():
                print(f"outlived its dispatcher: {_describe(survivor)}")
                survivor.kill()

    def logs(self) -> str:
        """What all its processes have written, without what they write all the time."""
        return "\n".join(
            f"--- {process.name} (pid {process.pid})\n{_without_noise(process.text())}"
            for process in self.processes
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: object, error: BaseException | None, _traceback: object) -> None:
        if error is not None:
            print(self.logs())
        self.stop()

    def _left(self) -> Iterator[psutil.Process]:
        for process in psutil.process_iter():
            try:
                if process.environ().get(MARKER) == self._marker:
                    yield process
            except psutil.Error:
                # It ended, is a zombie or somebody else's.
                continue

    def _online_workers(self, pool: str) -> list[schemas.Worker]:
        try:
            workers = self.objects.client.read_workers(pool)
        except errors.ObjectNotFound:
            return []
        return [worker for worker in workers if worker.status == "ONLINE"]

    # Runs

    def deployment(
        self, flow: str, *, file: str = "sample_flows.py", pool: str | None = None, **values: Any
    ) -> schemas.Deployment:
        """A deployment of one of the flows for tests."""
        values = {"path": str(FLOWS), "entrypoint": f"{file}:{flow}", **values}
        if self._through_proxy:
            variables = values.setdefault("job_variables", {})
            variables.setdefault("env", {})["PREFECT_API_URL"] = self.site.api_url
        return self.objects.deployment(pool or self.pool, **values)

    def run(
        self,
        deployment: schemas.Deployment,
        parameters: Mapping[str, Any] | None = None,
        *,
        due: datetime | None = None,
        **values: Any,
    ) -> Run:
        """A run of a deployment, due now if nothing else is said."""
        report = self.directory / f"report-{uuid4().hex}"
        parameters = {"report": str(report), **(parameters or {})}
        if due is not None:
            details = {"scheduled_time": due.isoformat()}
            values["state"] = {"type": "SCHEDULED", "state_details": details}
        flow_run = self.objects.run(deployment, parameters=parameters, **values)
        return Run(self.objects, flow_run, report)

    def redeliver(self, run: Run) -> None:
        """Send a run's message once more, as a broker that lost track of it would."""
        claim = self.ledger.get(run.id)
        assert claim is not None
        self.send_execute(claim.new)

    def send_execute(self, claim: claims.NewClaim) -> None:
        """Send the message of a claim to whoever executes runs."""
        self.celery.send_task(
            tasks.EXECUTE,
            args=(str(claim.flow_run_id), str(claim.claim_id)),
            task_id=str(claim.claim_id),
            # Through the exchange that every broker has, and as the workers have declared it.
            queue=Queue(tasks.RUNS_QUEUE),  # type: ignore[arg-type] # Celery takes it
            declare=[],
        )

    def waiting_messages(self, queue: str = tasks.node_queue(GONE)) -> int:
        """How many messages no worker has taken yet."""
        length: Any = self.redis.llen(queue)
        return int(length)


def is_alive(pid: int) -> bool:
    """Whether a process still runs."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _without_noise(log: str) -> str:
    lines = log.splitlines()
    return "\n".join(line for line in lines if not any(words in line for words in NOISE))


def _describe(process: psutil.Process) -> str:
    try:
        return f"{process.pid}: {process.cmdline()}"
    except psutil.Error:
        return str(process.pid)
