"""What becomes of runs whose worker, pool child, Redis or API dies: every case with real processes.

The cases share three dispatchers, and their waiting goes on side by side. The lease is a third of
the default one, so what takes 45 s with default settings has to be over in RECOVERY_SECONDS.
"""

from __future__ import annotations

import dataclasses
import itertools
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from dispatcher.celery_app import tasks
from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas
from tests import faulty_proxy, waiting
from tests import stack as stacks
from tests.chaos import records, world
from tests.conftest import NewStack

State = schemas.StateType

ROOT = Path(__file__).parents[2]
ENGINE = ROOT / "tests" / "chaos" / "flows" / "engine.py"

LEASE_SECONDS = 5.0
SETTINGS = {
    "DISPATCHER_LEASE_SECONDS": str(LEASE_SECONDS),
    "DISPATCHER_RECOVER_INTERVAL": "1",
    "DISPATCHER_CANCEL_INTERVAL": "0.5",
    "DISPATCHER_GRACE_SECONDS": "3",
    "DISPATCHER_PREFETCH_SECONDS": "3600",
}
# The default lease is 10 s longer, and recovery looks 4 s less often.
RECOVERY_SECONDS = 45.0 - 10.0 - 4.0
# From the death of a process to that of those which the kernel kills with it.
AT_ONCE_SECONDS = 3.0
UNWANTED_SECONDS = 15.0
# How often a worker looks for a Redis that is away, and some time to begin.
RECONNECT_SECONDS = 4.0
OUTAGE_SECONDS = 32.0

# Runs that are not due are claimed all the same, and their engines wait.
PREFETCH_SECONDS = 3600.0
DUE = datetime.now(UTC) + timedelta(seconds=PREFETCH_SECONDS / 2)
# Slots for the runs of the other workers.
ROOM = 5

# Until the gate of this name is opened.
WAITS = "--as prefect.engine --seconds 300 --gate end"
UNKNOWN = "--seconds 300 --gate end --stubborn"


class Job:
    """A run of the stand-in engine, which stays where it is until a gate is opened."""

    def __init__(
        self,
        stack: stacks.Stack,
        arguments: str = WAITS,
        *,
        infra_retries: int | None = None,
        due: datetime | None = None,
    ) -> None:
        self._marks = stack.directory / "marks"
        self._marks.mkdir(exist_ok=True)
        environment = {"CHAOS_MARKS": str(self._marks), "PYTHONPATH": str(ROOT)}
        command = shlex.join([sys.executable, "-S", str(ENGINE)])
        variables: dict[str, Any] = {"command": f"{command} {arguments}", "env": environment}
        if infra_retries is not None:
            variables["infra_retries"] = infra_retries
        self.stack = stack
        self.run = stack.run(stack.deployment("", job_variables=variables), due=due)

    def open(self, gate: str) -> None:
        """Let it go on."""
        (self._marks / f"{self.run.id}.{gate}").touch()

    def executions(self) -> tuple[records.Execution, ...]:
        """What it has left behind."""
        return records.read_executions(self._marks / str(self.run.id))

    def wait_for_mark(self, word: str = "begin", *, execution: int = 1) -> None:
        """Wait until an execution has left a mark."""
        waiting.wait_for(
            lambda: any(each.has(word) for each in self.executions()[execution - 1 : execution]),
            seconds=stacks.RUN_SECONDS,
            what=f"execution {execution} of flow run {self.run.id} leaves {word!r}",
        )

    def claim(self) -> claims.Claim:
        """Its claim in the ledger."""
        claim = self.stack.ledger.get(self.run.id)
        assert claim is not None
        return claim

    def processes(self) -> list[psutil.Process]:
        """Its living processes, wherever they are."""
        return [process for process in psutil.process_iter() if self._has(process)]

    def wait_until_gone(self, seconds: float = AT_ONCE_SECONDS) -> None:
        """Wait until no process of it is left."""
        waiting.wait_for(
            lambda: not self.processes(),
            seconds=seconds,
            every=0.1,
            what=f"no process of flow run {self.run.id} is left",
        )

    def assert_executed(self, *last_words: str) -> None:
        """Assert how its executions ended, and that none began before the one before was over."""
        executions = self.executions()
        assert tuple(each.marks[-1].word for each in executions) == last_words
        for earlier, later in itertools.pairwise(executions):
            assert earlier.last < later.began

    def assert_completed(self, *earlier: str) -> None:
        """Assert that it completes, and how the executions before the last one ended."""
        assert self.run.wait_for_end().type is State.COMPLETED
        self.wait_until_gone()  # Prefect knows of the end before its process has noted it
        self.assert_executed(*earlier, "reported")

    def _has(self, process: psutil.Process) -> bool:
        try:
            run_id = process.environ().get("PREFECT__FLOW_RUN_ID")
            return run_id == str(self.run.id) and process.status() != psutil.STATUS_ZOMBIE
        except psutil.Error:
            return False


@dataclasses.dataclass(frozen=True)
class Crew:
    """A worker that was full of runs when it was struck."""

    worker: stacks.CeleryProcess
    jobs: Mapping[str, Job]

    def __getitem__(self, name: str) -> Job:
        return self.jobs[name]


def full_worker(
    stack: stacks.Stack, name: str, jobs: Mapping[str, Job], *, room: int = 0, **settings: str
) -> Crew:
    """Start a worker with a slot for each run, which takes them if no other worker has one free."""
    arguments = ["--loglevel", "INFO", "--hostname", stack.node(name), "-Q", tasks.RUNS_QUEUE]
    worker = stacks.CeleryProcess(
        name,
        ["worker", *arguments, "--concurrency", str(len(jobs) + room)],
        {**stack.environment, **settings},
        stack.directory,
    )
    stack.processes.append(worker)
    for job in jobs.values():
        waiting.wait_for(job.executions, seconds=stacks.RUN_SECONDS, what="a run is executed")
        assert job.claim().node == stack.node(name)
    return Crew(worker, jobs)


@dataclasses.dataclass(frozen=True)
class Outage:
    """A dispatcher whose Redis went away at a moment of the monotonic clock."""

    stack: stacks.Stack
    redis: world.KeepingRedis
    jobs: Mapping[str, Job]
    at: float

    def end(self) -> None:
        """Bring Redis back with its data, once it has been away for long enough."""
        time.sleep(max(0.0, self.at + OUTAGE_SECONDS - time.monotonic()))
        self.redis.start()


@pytest.fixture(scope="module")
def outage(site: stacks.Site) -> Iterator[Outage]:
    """Redis is flushed while runs are executed, then goes away."""
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        world.KeepingRedis(Path(directory)) as redis,
        stacks.Stack(dataclasses.replace(site, new_redis_url=redis.new_url), **SETTINGS) as stack,
    ):
        stack.worker_with_beat(concurrency=5)
        stack.wait_until_served(stack.pool)
        jobs = {
            "ends meanwhile": Job(stack),
            "ends afterwards": Job(stack),
            "opted in": Job(stack, infra_retries=1),
            # As a command that is no engine of Prefect's: only Prefect knows that it has begun.
            "without control": Job(stack, UNKNOWN),
        }
        for job in jobs.values():
            job.wait_for_mark()
        stack.redis.flushall()
        waiting.wait_for(
            lambda: len(stack.ledger.open_run_ids()) == len(jobs),
            seconds=LEASE_SECONDS,
            what="the holders bring their claims back",
        )
        redis.stop()
        yield Outage(stack, redis, jobs, time.monotonic())


@dataclasses.dataclass(frozen=True)
class Silence:
    """A dispatcher that Prefect refuses, one of whose jobs dies."""

    proxy: faulty_proxy.FaultyProxy
    job: Job


@pytest.fixture(scope="module")
def silence(new_stack: NewStack, proxy: faulty_proxy.FaultyProxy) -> Iterator[Silence]:
    """Prefect falls silent for the dispatcher, and then the job dies."""
    with new_stack(api_url=proxy.api_url, **SETTINGS) as stack:
        stack.worker_with_beat(concurrency=2)
        stack.wait_until_served(stack.pool)
        job = Job(stack, WAITS + " --end exit")
        job.wait_for_mark()
        proxy.decide = lambda _request: faulty_proxy.Fault.REFUSE
        job.open("end")
        yield Silence(proxy, job)
        proxy.decide = faulty_proxy.no_faults


@dataclasses.dataclass(frozen=True)
class Field:
    """The workers of one dispatcher, each struck in a way of its own, all in the same moment."""

    stack: stacks.Stack
    crews: Mapping[str, Crew]
    stopped: list[psutil.Process]
    at: float  # time of day

    def __getitem__(self, name: str) -> Crew:
        return self.crews[name]


@pytest.fixture(scope="module")
def field(new_stack: NewStack, outage: Outage, silence: Silence) -> Iterator[Field]:
    """Struck while the other two dispatchers suffer, so that all the waiting is done at once."""
    with new_stack(**SETTINGS) as stack:
        named = ("--loglevel", "INFO", "--hostname", stack.node("control"))
        stack.start("control", "worker", *named, "-Q", tasks.CONTROL_QUEUE, "--concurrency", "2")
        for name in ("beat-one", "beat-two"):
            stack.beat(name)
        stack.wait_until_served(stack.pool)
        crews = full_workers(stack)
        main = psutil.Process(crews["frozen"].worker.pid)
        stopped = [main, *main.children(recursive=True)]
        victim = crews["maimed"]["victim"].processes()[0].parent()
        assert victim is not None

        at = time.time()
        crews["killed"].worker.send_signal(signal.SIGKILL)
        victim.kill()
        world.signal_all(stopped, signal.SIGSTOP)
        crews["crashing"].worker.send_signal(signal.SIGQUIT)
        crews["rescheduling"].worker.send_signal(signal.SIGQUIT)
        stack.processes[1].send_signal(signal.SIGKILL)  # one of the beats
        yield Field(stack, crews, stopped, at)
        world.signal_all(stopped, signal.SIGCONT)


def full_workers(stack: stacks.Stack) -> dict[str, Crew]:
    """Fill one worker after the other; the last one has room for what the others lose."""
    killed = {
        "plain": Job(stack, WAITS + " --escapee"),
        "opted in": Job(stack, infra_retries=1),
        "not begun": Job(stack, WAITS + " --late begin"),
    }
    crews = {"killed": full_worker(stack, "killed", killed)}
    maimed = {"victim": Job(stack), "neighbour": Job(stack)}
    crews["maimed"] = full_worker(stack, "maimed", maimed)
    frozen = {"plain": Job(stack), "opted in": Job(stack, infra_retries=1)}
    crews["frozen"] = full_worker(stack, "frozen", frozen)
    crashing = {"plain": Job(stack), "not due": Job(stack, due=DUE)}
    crews["crashing"] = full_worker(stack, "crashing", crashing)
    rescheduling = {"plain": Job(stack)}
    crews["rescheduling"] = full_worker(
        stack, "rescheduling", rescheduling, DISPATCHER_ON_SHUTDOWN="reschedule"
    )
    spare = {"cancelled": Job(stack), "deleted": Job(stack)}
    crews["spare"] = full_worker(stack, "spare", spare, room=ROOM)
    return crews


def assert_lost(job: Job, worker: str, since: float) -> None:
    """Assert that a run which had begun is Crashed, and says which worker it has lost."""
    state = job.run.wait_for_end(seconds=RECOVERY_SECONDS)
    assert state.type is State.CRASHED
    assert job.stack.node(worker) in str(state.message)
    assert job.run.entered(State.CRASHED) - since < RECOVERY_SECONDS
    assert job.run.history().count("CRASHED") == 1
    job.wait_until_gone()
    job.assert_executed("beat")


def assert_executed_again(job: Job, since: float) -> None:
    """Assert that a run begins once more in time, after its first execution, and completes."""
    job.wait_for_mark(execution=2)
    assert job.executions()[1].marks[0].at - since < RECOVERY_SECONDS
    job.open("end")
    job.assert_completed("beat")


def test_the_engines_of_a_killed_worker_are_gone_at_once(field: Field) -> None:
    pids = [job.executions()[0].pid for job in field["killed"].jobs.values()]

    waiting.wait_for(
        lambda: not any(stacks.is_alive(pid) for pid in pids),
        seconds=AT_ONCE_SECONDS,
        what="the engines die with their worker",
    )


def test_a_worker_that_is_told_to_stop_at_once_leaves_nothing_running(field: Field) -> None:
    for name in ("crashing", "rescheduling"):
        assert field[name].worker.wait(stacks.STOP_SECONDS) == 0

    for name in ("crashing", "rescheduling"):
        for job in field[name].jobs.values():
            pid = job.executions()[0].pid
            assert not stacks.is_alive(pid)


def test_a_run_that_is_cancelled_over_its_holders_head_is_stopped(field: Field) -> None:
    job = field["spare"]["cancelled"]

    field.stack.objects.force(job.run.id, State.CANCELLED)

    job.wait_until_gone(UNWANTED_SECONDS)
    history = job.run.history()
    assert set(history[history.index("RUNNING") :]) == {"RUNNING", "CANCELLED"}


def test_a_run_that_is_deleted_while_it_is_executed_is_stopped(field: Field) -> None:
    job = field["spare"]["deleted"]

    field.stack.objects.delete_run(job.run.id)

    job.wait_until_gone(UNWANTED_SECONDS)


def test_a_run_that_had_begun_is_crashed_when_its_worker_is_killed(field: Field) -> None:
    assert_lost(field["killed"]["plain"], "killed", field.at)


def test_a_run_that_is_opted_in_is_executed_again_when_its_worker_is_killed(field: Field) -> None:
    assert_executed_again(field["killed"]["opted in"], field.at)


def test_a_run_that_had_not_begun_is_put_back_when_its_worker_is_killed(field: Field) -> None:
    job = field["killed"]["not begun"]

    job.wait_for_mark("late", execution=2)

    assert job.executions()[1].marks[0].at - field.at < RECOVERY_SECONDS
    for gate in ("begin", "end"):
        job.open(gate)
    job.assert_completed("late")
    assert job.run.history().count("RUNNING") == 1


def test_a_pool_child_that_is_killed_takes_its_own_run_with_it_and_no_other(field: Field) -> None:
    neighbour = field["maimed"]["neighbour"]

    assert_lost(field["maimed"]["victim"], "maimed", field.at)

    neighbour.open("end")
    neighbour.assert_completed()


def test_a_worker_that_was_frozen_beyond_its_lease_touches_nothing_afterwards(
    field: Field,
) -> None:
    plain, opted_in = field["frozen"]["plain"], field["frozen"]["opted in"]
    assert_lost(plain, "frozen", field.at)
    assert_executed_again(opted_in, field.at)
    before = plain.run.history(), opted_in.run.history()

    world.signal_all(field.stopped, signal.SIGCONT)

    field["frozen"].worker.wait_for_text(f"{opted_in.run.id}")
    waiting.wait_for(
        lambda: field["frozen"].worker.text().count("succeeded in") >= len(field["frozen"].jobs),
        seconds=RECOVERY_SECONDS,
        what="the worker that was frozen is through with its tasks",
    )
    assert (plain.run.history(), opted_in.run.history()) == before
    plain.assert_executed("beat")


def test_a_run_that_had_begun_is_crashed_by_sigquit(field: Field) -> None:
    job = field["crashing"]["plain"]

    assert job.run.wait_for_end(seconds=RECOVERY_SECONDS).type is State.CRASHED
    job.assert_executed("beat")


def test_a_run_that_was_not_due_is_put_back_by_sigquit_and_not_started_early(field: Field) -> None:
    job = field["crashing"]["not due"]

    job.run.wait_for_state(State.SCHEDULED)

    assert job.run.state.state_details.scheduled_time == DUE
    job.assert_executed("waits")
    assert "RUNNING" not in job.run.history()
    job.run.cancel()
    assert job.run.wait_for_end().type is State.CANCELLED
    job.wait_until_gone()


def test_a_run_is_executed_again_after_sigquit_where_that_is_wanted(field: Field) -> None:
    assert_executed_again(field["rescheduling"]["plain"], field.at)


def test_one_beat_of_two_is_enough(field: Field) -> None:
    job = Job(field.stack, "--as prefect.engine --seconds 0.1")

    job.assert_completed()
    assert [beat.is_running for beat in field.stack.processes[1:3]] == [False, True]


def test_the_end_of_a_job_reaches_prefect_once_prefect_answers_again(silence: Silence) -> None:
    job = silence.job
    job.wait_until_gone(stacks.RUN_SECONDS)
    waiting.wait_for(
        lambda: job.claim().stage is claims.Stage.FINISHED,
        seconds=stacks.RUN_SECONDS,
        what="the end is kept",
    )
    before = job.run.state.type

    silence.proxy.decide = faulty_proxy.no_faults

    state = job.run.wait_for_end(seconds=RECOVERY_SECONDS)
    assert (before, state.type) == (State.RUNNING, State.CRASHED)
    assert "code 3" in str(state.message)


def test_runs_go_on_while_redis_is_away_and_none_is_executed_twice(outage: Outage) -> None:
    meanwhile, opted_in = outage.jobs["ends meanwhile"], outage.jobs["opted in"]
    meanwhile.open("end")
    assert meanwhile.run.wait_for_end().type is State.COMPLETED
    # Somebody else might start it, so its holder may not let it go on.
    opted_in.wait_until_gone(RECOVERY_SECONDS)

    outage.end()

    assert_executed_again(opted_in, time.time() + RECONNECT_SECONDS)
    assert opted_in.executions()[0].last - outage.at < LEASE_SECONDS + AT_ONCE_SECONDS
    afterwards = [outage.jobs[name] for name in ("ends afterwards", "without control")]
    waiting.wait_for(
        lambda: outage.stack.ledger.open_run_ids() == {job.run.id for job in afterwards},
        seconds=RECOVERY_SECONDS,
        what="only the runs that are executed use slots",
    )
    for job in afterwards:
        job.open("end")
    for job in (meanwhile, *afterwards):
        job.assert_completed()


def test_runs_are_recovered_when_everything_is_killed_and_redis_is_empty(outage: Outage) -> None:
    stack = outage.stack
    plain, opted_in = Job(stack), Job(stack, infra_retries=1)
    for job in (plain, opted_in):
        job.wait_for_mark()
    stack.processes[0].send_signal(signal.SIGKILL)
    for job in (plain, opted_in):
        job.wait_until_gone()
    stack.redis.flushall()

    since = time.time()
    stack.worker("again", "-B", "-s", str(stack.directory / "again"), "--concurrency", "3")

    assert_executed_again(opted_in, since)
    assert plain.run.wait_for_end(seconds=RECOVERY_SECONDS).type is State.CRASHED
    assert plain.run.entered(State.CRASHED) - since < RECOVERY_SECONDS
    plain.assert_executed("beat")
