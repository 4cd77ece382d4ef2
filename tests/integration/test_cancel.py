"""Runs that are cancelled: while they run, while they wait for a worker, and without a trace."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.celery_app import tasks
from dispatcher.ledger import fleet
from dispatcher.prefect_api import schemas
from tests import stack as stacks
from tests import waiting
from tests.conftest import NewStack

State = schemas.StateType

GRACE_SECONDS = 3.0
CANCEL_SECONDS = GRACE_SECONDS + 5.0  # what is promised


@pytest.fixture(scope="module", params=["prefork", "threads"])
def stack(new_stack: NewStack, request: pytest.FixtureRequest) -> Iterator[stacks.Stack]:
    """One worker for control work with a beat, one for runs."""
    settings = {
        "DISPATCHER_CANCEL_INTERVAL": "0.5",
        "DISPATCHER_GRACE_SECONDS": str(GRACE_SECONDS),
    }
    with new_stack(**settings) as stack:
        schedule = str(stack.directory / "schedule")
        control = ("-Q", tasks.CONTROL_QUEUE, "-B", "-s", schedule, "--concurrency", "2")
        stack.worker("control", *control)
        options = ("--concurrency", "3", "--pool", str(request.param))
        stack.worker("runs", "-Q", tasks.RUNS_QUEUE, *options)
        stack.wait_until_served(stack.pool)
        yield stack


@contextlib.contextmanager
def nobody_taking_runs(stack: stacks.Stack) -> Iterator[None]:
    """The run worker lives and reports its slots, but takes no message meanwhile."""
    control = stack.celery.control
    # To this worker alone: add_consumer would make the other one take runs, too.
    answer: Any = {"destination": [stack.node("runs")], "reply": True, "limit": 1, "timeout": 10.0}
    assert control.cancel_consumer(tasks.RUNS_QUEUE, **answer)
    # Runs are claimed for nobody else; this one seems to be there, and takes no message.
    gone = stack.seem_to_have(slots=10)
    try:
        yield
    finally:
        fleet.Fleet(stack.redis).leave(gone.key)
        assert control.add_consumer(tasks.RUNS_QUEUE, **answer)
        stack.bring_late("runs")


def wait_for_message(stack: stacks.Stack) -> None:
    waiting.wait_for(stack.waiting_messages, seconds=30, what="a run's message waits in the queue")


@contextlib.contextmanager
def run_in_queue(stack: stacks.Stack, deployment: schemas.Deployment) -> Iterator[stacks.Run]:
    """A run that is claimed, and whose message no worker takes meanwhile."""
    with nobody_taking_runs(stack):
        run = stack.run(deployment)
        wait_for_message(stack)
        yield run


def wait_for_next_run(stack: stacks.Stack) -> None:
    """Wait until the workers have dealt with all that came before this."""
    deployment = stack.deployment("completes", job_variables={"command": "no-such-command"})
    assert stack.run(deployment).wait_for_end().type is State.CRASHED


def pid_in(line: str) -> int:
    return int(line.rpartition(" ")[2])


@pytest.fixture
def unclaimed(stack: stacks.Stack) -> stacks.Run:
    """A run in Pending of which the dispatcher knows nothing."""
    due = datetime.now(UTC) + timedelta(hours=1)
    run = stack.run(stack.deployment("completes"), due=due)
    stack.objects.force(run.id, State.PENDING)
    return run


def test_running_runs_are_cancelled_with_their_hooks_and_their_processes_are_gone(
    stack: stacks.Stack,
) -> None:
    asked = stack.run(stack.deployment("waits"))
    asked_by_prefect_2 = stack.run(stack.deployment("waits"))
    stubborn = stack.run(stack.deployment("ignores_everything"))
    runs = [asked, asked_by_prefect_2, stubborn]
    pids = [pid_in(run.wait_for_line("running")) for run in runs]
    pids.append(pid_in(stubborn.wait_for_line("escapee")))

    asked.cancel()
    stack.objects.force(asked_by_prefect_2.id, State.CANCELLED, "Cancelling")
    stubborn.cancel()
    for run in runs:
        run.wait_for_end(seconds=CANCEL_SECONDS)

    for run in runs:
        assert run.state.name == "Cancelled"
        assert "CRASHED" not in run.history()
    assert [line for line in asked.lines() if line.startswith("on_")] == ["on_cancellation"]
    assert not [pid for pid in pids if stacks.is_alive(pid)]


def test_a_pending_run_whose_message_waits_is_cancelled_and_never_starts(
    stack: stacks.Stack,
) -> None:
    with run_in_queue(stack, stack.deployment("completes")) as run:
        run.cancel()

        state = run.wait_for_end(seconds=CANCEL_SECONDS)
        assert stack.waiting_messages() == 1
    wait_for_next_run(stack)
    assert stack.waiting_messages() == 0
    assert state.message == "Flow run was cancelled before its job was started."
    assert run.history()[-3:] == ["PENDING", "CANCELLING", "CANCELLED"]
    assert not run.lines()


def test_a_run_that_is_cancelled_in_prefect_while_its_message_waits_is_left_as_it_is(
    stack: stacks.Stack,
) -> None:
    with run_in_queue(stack, stack.deployment("completes")) as run:
        stack.objects.force(run.id, State.CANCELLED)

    wait_for_next_run(stack)
    assert run.history()[-2:] == ["PENDING", "CANCELLED"]
    assert not run.lines()


def test_a_run_that_is_deleted_while_its_message_waits_harms_nobody(stack: stacks.Stack) -> None:
    with run_in_queue(stack, stack.deployment("completes")) as run:
        stack.objects.delete_run(run.id)

    wait_for_next_run(stack)
    assert not run.lines()
    assert run.id not in stack.ledger.open_run_ids()


def test_a_run_whose_deployment_is_deleted_after_its_claim_is_cancelled_naming_it(
    stack: stacks.Stack,
) -> None:
    deployment = stack.deployment("completes")
    with run_in_queue(stack, deployment) as run:
        stack.objects.delete_deployment(deployment.id)

    state = run.wait_for_end()
    assert state.type is State.CANCELLED
    assert str(deployment.id) in str(state.message)
    assert run.history()[-2:] == ["PENDING", "CANCELLED"]


def test_a_cancelled_run_without_claim_and_infrastructure_says_so(unclaimed: stacks.Run) -> None:
    unclaimed.cancel()

    state = unclaimed.wait_for_end(seconds=CANCEL_SECONDS)
    assert state.type is State.CANCELLED
    assert "no infrastructure pid" in str(state.message)


def test_a_run_that_prefect_2_marked_as_cancelling_is_cancelled(
    stack: stacks.Stack, unclaimed: stacks.Run
) -> None:
    stack.objects.force(unclaimed.id, State.CANCELLED, "Cancelling")

    state = unclaimed.wait_for_end(seconds=CANCEL_SECONDS)
    assert (state.type, state.name) == (State.CANCELLED, "Cancelled")
