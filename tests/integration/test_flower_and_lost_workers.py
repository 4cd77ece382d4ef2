"""What a real Flower shows of runs whose worker cannot tell their end, and does to workers."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import psutil
import pytest

from dispatcher.celery_app import tasks
from dispatcher.ledger import fleet
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack
from tests.integration import test_flower

State = schemas.StateType

EXIT_SECONDS = 40.0
SETTINGS = {
    "DISPATCHER_LEASE_SECONDS": "5",
    "DISPATCHER_RECOVER_INTERVAL": "1",
    "DISPATCHER_GRACE_SECONDS": "3",
    "DISPATCHER_ON_SHUTDOWN": "reschedule",
}
Start = Callable[..., stacks.CeleryProcess]

POOLS = {"processes": (), "threads": ("--pool", "threads")}


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    """A fleet without a worker for runs."""
    with new_stack(**SETTINGS) as stack:
        stack.control_worker()
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.fixture(scope="module")
def flower(stack: stacks.Stack) -> test_flower.Flower:
    return test_flower.Flower(stack)


@pytest.fixture
def start(stack: stacks.Stack) -> Iterator[Start]:
    """Starts workers for runs, and stops them whatever happens."""
    started: list[stacks.CeleryProcess] = []

    def begin(name: str, *options: str) -> stacks.CeleryProcess:
        started.append(stack.worker(name, "-Q", tasks.RUNS_QUEUE, "-c", "1", *options))
        return started[-1]

    yield begin
    for worker in started:
        if worker.is_running:
            worker.stop()


def kill(worker: stacks.CeleryProcess, _pid: int) -> None:
    family = psutil.Process(worker.pid)
    for process in (family, *family.children(recursive=True)):
        process.kill()


def kill_pool_process(_worker: stacks.CeleryProcess, pid: int) -> None:
    pool_process = psutil.Process(pid).parent()
    assert pool_process is not None
    pool_process.kill()


def stop_in_a_hurry(worker: stacks.CeleryProcess, _pid: int) -> None:
    worker.send_signal(signal.SIGQUIT)


@pytest.mark.parametrize(
    ("lose", "pool"),
    [
        (kill, "processes"),
        (kill_pool_process, "processes"),
        (stop_in_a_hurry, "processes"),
        (stop_in_a_hurry, "threads"),
    ],
)
def test_a_run_that_is_put_back_comes_again(
    stack: stacks.Stack,
    flower: test_flower.Flower,
    start: Start,
    lose: Callable[[stacks.CeleryProcess, int], None],
    pool: str,
) -> None:
    first = start("first", *POOLS[pool])
    gate = stack.directory / f"gate-{lose.__name__}-{pool}"
    steps = ("RUNNING", "note", f"wait:{gate}", "COMPLETED")
    variables = {"infra_retries": 1}
    run = light_jobs.run(stack, stack.deployment("none"), *steps, job_variables=variables)
    pid = int(light_jobs.wait_until_seen(run)["pid"])
    assert "'attempt': 1" in flower.wait_for(run, "STARTED")["kwargs"]

    lose(first, pid)

    shown = flower.wait_for(run, "RETRY")
    assert "again" in shown["exception"]
    gate.touch()
    if lose is not kill_pool_process:
        first.wait(EXIT_SECONDS)
        first = start("second", *POOLS[pool])
    assert run.wait_for_end().type is State.COMPLETED
    # A worker that is told to stop is no failure of the run.
    attempt = 1 if lose is stop_in_a_hurry else 2
    assert f"'attempt': {attempt}" in flower.wait_for(run, "SUCCESS")["kwargs"]
    assert first.stop() == 0


def test_a_run_that_is_lost_for_good_is_a_failure_that_names_its_worker(
    stack: stacks.Stack, flower: test_flower.Flower, start: Start
) -> None:
    worker = start("lost")
    run = light_jobs.run(stack, stack.deployment("none"), *test_flower.ENDLESS)
    pid = int(light_jobs.wait_until_seen(run)["pid"])
    flower.wait_for(run, "STARTED")
    kill(worker, pid)
    assert run.wait_for_end().type is State.CRASHED
    shown = flower.wait_for(run, "FAILURE")
    assert "Its worker lost" in shown["exception"]


def test_a_worker_that_is_shut_down_from_its_page_finishes_its_runs(
    stack: stacks.Stack, flower: test_flower.Flower, start: Start
) -> None:
    worker = start("leaves")
    gate = stack.directory / "gate-leaves"
    steps = ("RUNNING", "note", f"wait:{gate}", "COMPLETED")
    run = light_jobs.run(stack, stack.deployment("none"), *steps)
    pid = int(light_jobs.wait_until_seen(run)["pid"])
    flower.wait_until_known(stack.node("leaves"))
    flower.post(f"/api/worker/shutdown/{stack.node('leaves')}")
    worker.wait_for_text("Got shutdown from remote")
    assert stacks.is_alive(pid)
    gate.touch()
    assert run.wait_for_end().type is State.COMPLETED
    assert worker.wait(EXIT_SECONDS) == 0
    flower.wait_for(run, "SUCCESS")


def test_a_worker_that_grows_or_shrinks_on_its_page_has_so_many_slots(
    stack: stacks.Stack, flower: test_flower.Flower, start: Start
) -> None:
    worker = start("changes")
    workers = fleet.Fleet(stack.redis)
    waiting.wait_for(lambda: workers.slots() == 1, seconds=20, what="it is counted")
    flower.wait_until_known(stack.node("changes"))
    for change, slots in (("grow", 2), ("shrink", 1)):
        flower.post(f"/api/worker/pool/{change}/{stack.node('changes')}?n=1")
        waiting.wait_for(
            lambda: workers.slots() == slots,  # noqa: B023
            seconds=10,
            what=f"after {change} it has {slots} slots",
        )
    assert worker.stop() == 0
