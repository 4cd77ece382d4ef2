"""How long it takes, with default settings, until nothing is left of what was killed or cancelled.

What was measured is printed and written as JSON to ``.pytest_cache/d/bounds/measured.json``.
"""

from __future__ import annotations

import dataclasses
import json
import signal
import statistics
import time
from collections.abc import Callable, Iterator, Sequence

import psutil
import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

RUNS = 20
# What is promised.
RECOVERY_SECONDS = 45.0
GRACE_SECONDS = 3.0
CANCEL_SECONDS = GRACE_SECONDS + 5.0
# From the death of a worker to that of all that it has started.
GONE_SECONDS = 10.0  # at once, but for the machine's load; recovery takes longer
LOOK_SECONDS = 0.02
TIMEOUT_SECONDS = 300

CANCELS = 3

LEASE_SECONDS = 15.0

DEFAULTS = {
    "DISPATCHER_POLL_INTERVAL": "5",
    "DISPATCHER_CANCEL_INTERVAL": "2",
    "DISPATCHER_RECOVER_INTERVAL": "5",
    "DISPATCHER_LEASE_SECONDS": str(LEASE_SECONDS),
}

Note = Callable[[str, Sequence[float]], None]

pytestmark = pytest.mark.timeout(TIMEOUT_SECONDS)


@pytest.fixture(scope="module")
def note(pytestconfig: pytest.Config) -> Note:
    """Notes what was measured, in seconds."""
    file = pytestconfig.cache.mkdir("bounds") / "measured.json"

    def note(name: str, seconds: Sequence[float]) -> None:
        found = json.loads(file.read_text()) if file.exists() else {}
        found[name] = {
            "count": len(seconds),
            "median": round(statistics.median(seconds), 3),
            "max": round(max(seconds), 3),
        }
        file.write_text(json.dumps(found, indent=2, sort_keys=True) + "\n")
        print(f"{name}: {found[name]}")

    return note


@dataclasses.dataclass(frozen=True)
class Fleet:
    """A dispatcher whose worker for runs is full; one of its runs may be executed again."""

    stack: stacks.Stack
    runs: Sequence[stacks.Run]
    again: stacks.Run

    def read(self) -> list[schemas.FlowRun]:
        """The runs that end with their worker, as they are now."""
        ids = [run.id for run in self.runs]
        return self.stack.objects.client.read_flow_runs(schemas.FlowRunFilter(ids=ids))

    def processes(self) -> list[psutil.Process]:
        """Every process of its Celery processes and their jobs."""
        mains = [psutil.Process(each.pid) for each in self.stack.processes if each.is_running]
        return [*mains, *(child for main in mains for child in main.children(recursive=True))]

    def recovery_seconds(self, since: float) -> list[float]:
        """Wait until every run has ended or begun again, and return how long each has taken."""
        waiting.wait_for(
            lambda: all(run.state and run.state.is_terminal for run in self.read()),
            seconds=RECOVERY_SECONDS + 10.0,
            every=0.5,
            what="every run that was lost has ended",
        )
        waiting.wait_for(
            lambda: self.again.history().count("RUNNING") == 2,
            seconds=RECOVERY_SECONDS,
            every=0.5,
            what="the run that may be executed again is",
        )
        began_again = [state for state in self.again.states() if state.type is State.RUNNING][-1]
        assert began_again.timestamp is not None
        taken = [run.entered(State.CRASHED) - since for run in self.runs]
        return [*taken, began_again.timestamp.timestamp() - since]


def full_fleet(stack: stacks.Stack) -> Fleet:
    """A worker for control with a beat, and one for runs that is full."""
    start_all(stack, "first")
    stack.wait_until_served(stack.pool)
    deployment = stack.deployment("none")
    steps = ("RUNNING", "note", "wait:/no/such")
    runs = [light_jobs.run(stack, deployment, *steps) for _ in range(RUNS - 1)]
    again = light_jobs.run(stack, deployment, *steps, job_variables={"infra_retries": 1})
    for run in (*runs, again):
        light_jobs.wait_until_seen(run)
    return Fleet(stack, runs, again)


def start_all(stack: stacks.Stack, name: str) -> None:
    schedule = str(stack.directory / f"schedule-{name}")
    control = ("-Q", tasks.CONTROL_QUEUE, "-B", "-s", schedule, "--concurrency", "2")
    stack.worker(f"control-{name}", *control)
    stack.worker(f"runs-{name}", "-Q", tasks.RUNS_QUEUE, "--concurrency", str(RUNS))


@pytest.fixture(scope="module")
def one_killed(new_stack: NewStack) -> Iterator[Fleet]:
    """A fleet whose worker for runs is about to be killed; another one is there to take over."""
    with new_stack(**DEFAULTS) as stack:
        fleet = full_fleet(stack)
        stack.worker("spare", "-Q", tasks.RUNS_QUEUE, "--concurrency", "2")
        yield fleet


@pytest.fixture(scope="module")
def all_killed(new_stack: NewStack) -> Iterator[Fleet]:
    """A fleet that is about to be killed."""
    with new_stack(**DEFAULTS) as stack:
        yield full_fleet(stack)


def seconds_until_gone(processes: Sequence[psutil.Process], since: float) -> float:
    """Wait until none of these is there any more; return how long that took."""
    waiting.wait_for(
        lambda: not any(stacks.is_alive(process.pid) for process in processes),
        seconds=CANCEL_SECONDS + 10.0,
        every=LOOK_SECONDS,
        what="every process is gone",
    )
    return time.monotonic() - since


def kill(processes: Sequence[stacks.CeleryProcess]) -> None:
    for process in processes:
        process.send_signal(signal.SIGKILL)


def test_all_that_was_killed_is_gone_at_once_and_every_run_of_it_is_over_or_begun_again_in_time(
    one_killed: Fleet, all_killed: Fleet, note: Note
) -> None:
    # Both at once, since it is waiting for the most part.
    killed = one_killed.stack.processes[1]
    lost = psutil.Process(killed.pid).children(recursive=True)
    everything = all_killed.processes()
    assert len(lost) >= 2 * RUNS

    killed_at, since = time.time(), time.monotonic()
    kill([killed])
    lost_after = seconds_until_gone(lost, since)
    note("worker killed: processes gone", [lost_after])
    assert lost_after < GONE_SECONDS
    since = time.monotonic()
    kill(all_killed.stack.processes)
    gone_after = seconds_until_gone(everything, since)
    note("everything killed: processes gone", [gone_after])
    assert gone_after < GONE_SECONDS
    restarted_at = time.time()
    start_all(all_killed.stack, "second")

    taken = one_killed.recovery_seconds(killed_at)
    taken_after_restart = all_killed.recovery_seconds(restarted_at)

    note("worker killed: run ended or begun again", taken)
    note("everything killed: run ended or begun again after the restart", taken_after_restart)
    assert max(taken) < RECOVERY_SECONDS
    assert max(taken_after_restart) < RECOVERY_SECONDS
    for fleet in (one_killed, all_killed):
        assert len(light_jobs.seen(fleet.again)) == 2
        assert all(len(light_jobs.seen(run)) == 1 for run in fleet.runs)


@pytest.fixture(scope="module")
def small(new_stack: NewStack) -> Iterator[stacks.Stack]:
    """One worker that is everything."""
    with new_stack(**DEFAULTS | {"DISPATCHER_GRACE_SECONDS": str(GRACE_SECONDS)}) as stack:
        stack.worker_with_beat(concurrency=3)
        stack.wait_until_served(stack.pool)
        yield stack


def processes_of(run: stacks.Run) -> list[psutil.Process]:
    """Every process of a run's job, wherever it has gone."""
    return [process for process in psutil.process_iter() if _is_of(process, run)]


def _is_of(process: psutil.Process, run: stacks.Run) -> bool:
    try:
        return process.environ().get("PREFECT__FLOW_RUN_ID") == str(run.id)
    except psutil.Error:
        return False


def seconds_to_cancel(run: stacks.Run) -> float:
    """Cancel a run that is executed; return how long it takes until its last process is gone."""
    line = run.wait_for_line("running")
    processes = processes_of(run)
    assert int(line.split()[-1]) in {process.pid for process in processes}
    since = time.monotonic()
    run.cancel()
    taken = seconds_until_gone(processes, since)
    assert run.wait_for_end(seconds=CANCEL_SECONDS).name == "Cancelled"
    return taken


def test_a_flow_that_obeys_is_gone_soon_after_it_is_cancelled(
    small: stacks.Stack, note: Note
) -> None:
    deployment = small.deployment("waits")
    taken = [seconds_to_cancel(small.run(deployment)) for _ in range(CANCELS)]

    note("cancelled: last process gone", taken)
    assert max(taken) < CANCEL_SECONDS


def test_a_flow_that_ignores_everything_is_gone_with_all_that_it_has_started(
    small: stacks.Stack, note: Note
) -> None:
    run = small.run(small.deployment("ignores_everything"))
    escapee = int(run.wait_for_line("escapee").split()[-1])
    run.wait_for_line("running")

    taken = seconds_to_cancel(run)

    note("cancelled, ignores SIGTERM, with escapees: last process gone", [taken])
    assert GRACE_SECONDS < taken < CANCEL_SECONDS
    assert not stacks.is_alive(escapee)
    assert "ignored" in "".join(run.lines())


def test_a_run_whose_pool_process_is_killed_does_not_wait_for_its_lease(
    small: stacks.Stack, note: Note
) -> None:
    steps = ("RUNNING", "note", "wait:/no/such")
    run = light_jobs.run(small, small.deployment("none"), *steps)
    victim = psutil.Process(light_jobs.wait_until_seen(run)["pid"]).parent()
    assert victim is not None

    at = time.time()
    victim.kill()

    assert run.wait_for_end(seconds=RECOVERY_SECONDS).type is State.CRASHED
    taken = run.entered(State.CRASHED) - at
    note("pool process killed: run ended", [taken])
    assert taken < LEASE_SECONDS
