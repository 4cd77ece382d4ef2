"""What Celery's own commands for a worker do to the fleet's slots, as the docs have it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from dispatcher.celery_app import tasks
from dispatcher.ledger import fleet
from dispatcher.prefect_api import schemas
from tests import dispatcher_command, light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

SECONDS = 15.0
Start = Callable[..., stacks.CeleryProcess]

POOLS = {"processes": (), "threads": ("--pool", "threads")}


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    """A fleet without a worker for runs."""
    with new_stack(DISPATCHER_GRACE_SECONDS="3", DISPATCHER_POLL_INTERVAL="1") as stack:
        stack.control_worker()
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest) -> tuple[str, ...]:
    """The options of a worker's pool."""
    return POOLS[request.param]


@pytest.fixture
def start(stack: stacks.Stack) -> Iterator[Start]:
    """Starts the worker for runs, and stops it whatever happens."""
    started: list[stacks.CeleryProcess] = []

    def begin(*options: str) -> stacks.CeleryProcess:
        started.append(stack.worker("runs", "-Q", tasks.RUNS_QUEUE, *options))
        node = stack.node("runs")
        # A worker that is ready hears commands a moment later.
        waiting.wait_for(
            lambda: stack.celery.control.ping(destination=[node], timeout=1.0),
            seconds=30,
            what="it answers",
        )
        return started[-1]

    yield begin
    for worker in started:
        worker.stop()


def wait_for_slots(stack: stacks.Stack, slots: int) -> None:
    workers = fleet.Fleet(stack.redis)
    waiting.wait_for(lambda: workers.slots() == slots, seconds=SECONDS, what=f"{slots} slots")


def control(stack: stacks.Stack, command: str, **arguments: Any) -> None:
    """Send a command of Celery's to the worker for runs."""
    stack.celery.control.broadcast(
        command, arguments=arguments, destination=[stack.node("runs")], reply=False
    )


def wait_until_late(run: stacks.Run) -> None:
    """Wait until Prefect itself finds that nobody claims a run."""
    waiting.wait_for(lambda: run.state.name == "Late", seconds=60, every=0.5, what="it is late")


def execute_at_once(stack: stacks.Stack, count: int) -> None:
    """Have so many runs executed side by side, and no more."""
    gate = stack.directory / os.urandom(4).hex()
    deployment = stack.deployment("none")
    steps = ("RUNNING", "note", f"wait:{gate}", "COMPLETED")
    runs = [light_jobs.run(stack, deployment, *steps) for _ in range(count + 1)]

    def begun() -> int:
        return sum(bool(light_jobs.seen(run)) for run in runs)

    waiting.wait_for(lambda: begun() == count, seconds=SECONDS, what=f"{count} runs at once")
    (left,) = [run for run in runs if not light_jobs.seen(run)]
    assert left.history() == ["SCHEDULED"]
    gate.touch()
    for run in runs:
        assert run.wait_for_end().type is State.COMPLETED


def told_by_status(stack: stacks.Stack) -> str:
    """What ``dispatcher status`` says of the worker for runs."""
    _, found = dispatcher_command.status(stack)
    workers = found["workers"]
    (held_up,) = [each["held_up"] for each in workers if each["name"] == stack.node("runs")]
    return str(held_up)


def test_growing_and_shrinking_a_pool_counts(
    stack: stacks.Stack, start: Start, pool: tuple[str, ...]
) -> None:
    worker = start("-c", "2", *pool)
    wait_for_slots(stack, 2)
    control(stack, "pool_grow", n=1)
    wait_for_slots(stack, 3)
    execute_at_once(stack, 3)
    control(stack, "pool_shrink", n=2)
    wait_for_slots(stack, 1)
    execute_at_once(stack, 1)
    assert worker.stop() == 0
    assert "Error" not in worker.text()


def test_a_scaled_pool_counts_as_large_as_it_may_grow(
    stack: stacks.Stack, start: Start, pool: tuple[str, ...]
) -> None:
    worker = start("--autoscale", "3,1", *pool)
    wait_for_slots(stack, 3)
    execute_at_once(stack, 3)
    control(stack, "autoscale", max=2, min=1)
    wait_for_slots(stack, 2)
    execute_at_once(stack, 2)
    assert worker.stop() == 0
    assert "Error" not in worker.text()


def test_no_run_is_claimed_for_a_worker_that_does_not_consume_runs(
    stack: stacks.Stack, start: Start, pool: tuple[str, ...]
) -> None:
    worker = start("-c", "2", *pool)
    wait_for_slots(stack, 2)
    control(stack, "cancel_consumer", queue=tasks.RUNS_QUEUE)
    wait_for_slots(stack, 0)
    assert told_by_status(stack) == f"it does not consume {tasks.RUNS_QUEUE}"
    run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
    wait_until_late(run)
    assert "PENDING" not in run.history()
    control(stack, "add_consumer", queue=tasks.RUNS_QUEUE)
    assert run.wait_for_end().type is State.COMPLETED
    assert told_by_status(stack) == ""
    assert worker.stop() == 0


def test_no_more_runs_are_claimed_than_a_rate_limit_lets_through(
    stack: stacks.Stack, start: Start, pool: tuple[str, ...]
) -> None:
    worker = start("-c", "2", *pool)
    wait_for_slots(stack, 2)
    control(stack, "rate_limit", task_name=tasks.EXECUTE, rate_limit="1/h")
    wait_for_slots(stack, 1)
    deployment = stack.deployment("none")
    first = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
    assert first.wait_for_end().type is State.COMPLETED
    wait_for_slots(stack, 0)
    assert told_by_status(stack) == "its rate is limited to 1/h"
    second = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
    wait_until_late(second)
    assert "PENDING" not in second.history()
    control(stack, "rate_limit", task_name=tasks.EXECUTE, rate_limit=0)
    wait_for_slots(stack, 2)
    assert second.wait_for_end().type is State.COMPLETED
    assert worker.stop() == 0
