"""Cancels that come another way than by a request for a running run."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

GRACE_SECONDS = 3.0
GONE_SECONDS = 40.0  # promised are 13: a look every 5 s, grace and margin


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    settings = {
        "DISPATCHER_CANCEL_INTERVAL": "0.5",
        "DISPATCHER_GRACE_SECONDS": str(GRACE_SECONDS),
    }
    with new_stack(**settings) as stack:
        stack.worker_with_beat(concurrency=6)
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.fixture
def running(stack: stacks.Stack) -> stacks.Run:
    """A run that goes on for ever."""
    run = light_jobs.run(stack, stack.deployment("none"), "RUNNING", "note", "wait:/no/such")
    light_jobs.wait_until_seen(run)
    return run


def wait_until_gone(pid: int) -> None:
    waiting.wait_for(
        lambda: not stacks.is_alive(pid), seconds=GONE_SECONDS, what=f"process {pid} is gone"
    )


def assert_serving(stack: stacks.Stack) -> None:
    run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
    assert run.wait_for_end().type is State.COMPLETED
    assert "Traceback" not in stack.processes[0].text()


def test_a_run_that_is_forced_to_cancelled_is_stopped_and_stays_cancelled(
    stack: stacks.Stack, running: stacks.Run
) -> None:
    stack.objects.force(running.id, State.CANCELLED)

    wait_until_gone(light_jobs.seen(running)[0]["pid"])
    assert_serving(stack)
    assert running.history()[-2:] == ["RUNNING", "CANCELLED"]


def test_the_job_of_a_run_that_is_deleted_is_stopped_and_harms_nobody(
    stack: stacks.Stack, running: stacks.Run
) -> None:
    stack.objects.delete_run(running.id)

    wait_until_gone(light_jobs.seen(running)[0]["pid"])
    assert_serving(stack)


def test_a_run_whose_deployment_is_deleted_while_it_runs_can_be_cancelled(
    stack: stacks.Stack, running: stacks.Run
) -> None:
    assert running.flow_run.deployment_id is not None
    stack.objects.delete_deployment(running.flow_run.deployment_id)

    running.cancel()

    assert running.wait_for_end().type is State.CANCELLED
    wait_until_gone(light_jobs.seen(running)[0]["pid"])


def test_a_run_whose_job_has_not_begun_its_flow_is_cancelled(stack: stacks.Stack) -> None:
    run = light_jobs.run(stack, stack.deployment("none"), "note", "wait:/no/such", "RUNNING")
    pid = light_jobs.wait_until_seen(run)["pid"]
    waiting.wait_for(lambda: run.read().infrastructure_pid, seconds=30, what="its pid is known")

    run.cancel()

    assert run.wait_for_end().type is State.CANCELLED
    wait_until_gone(pid)
    assert run.history()[-3:] == ["PENDING", "CANCELLING", "CANCELLED"]


def test_a_scheduled_run_is_cancelled_at_once_and_never_started(stack: stacks.Stack) -> None:
    due = datetime.now(UTC) + timedelta(hours=1)
    run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE, due=due)

    run.cancel()

    assert run.history() == ["SCHEDULED", "CANCELLED"]
    assert_serving(stack)
    assert not run.lines()


def test_a_run_that_has_completed_stays_completed(stack: stacks.Stack) -> None:
    gate = stack.directory / "completed"
    run = light_jobs.run(
        stack, stack.deployment("none"), "RUNNING", "COMPLETED", "note", f"wait:{gate}"
    )
    light_jobs.wait_until_seen(run)

    run.cancel()
    gate.touch()

    waiting.wait_for(
        lambda: run.id not in stack.ledger.open_run_ids(), seconds=30, what="the claim is closed"
    )
    assert run.history()[-2:] == ["RUNNING", "COMPLETED"]
