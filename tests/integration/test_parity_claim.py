"""Which runs are claimed: by their state, their queue, and the limits that Prefect keeps."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

QUEUE = "served-later"
LATE_SECONDS = 60.0  # a server looks every 5 s
SLOT_SECONDS = 120.0  # a server lets a run wait 30 s for a slot of its deployment


@pytest.fixture(scope="module")
def stack(
    new_stack: NewStack, server_objects: prefect_objects.PrefectObjects
) -> Iterator[stacks.Stack]:
    """Serves a pool, and one that takes one run at a time."""
    pools = [server_objects.pool().name, server_objects.pool(concurrency_limit=1).name]
    with new_stack(*pools) as stack:
        stack.worker_with_beat(concurrency=6)
        for pool in pools:
            stack.wait_until_served(pool)
        yield stack


@pytest.fixture(scope="module")
def waiting_for_slot(stack: stacks.Stack) -> tuple[stacks.Run, stacks.Run]:
    """Two runs of a deployment that allows one at a time: one runs, one has to wait.

    Made first, since the waiting one waits long.
    """
    deployment = stack.deployment("none", concurrency_limit=1)
    gate = stack.directory / "slot"
    first = light_jobs.run(stack, deployment, "RUNNING", "note", f"wait:{gate}", "COMPLETED")
    light_jobs.wait_until_seen(first)
    second = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
    waiting.wait_for(
        lambda: second.state.name == "AwaitingConcurrencySlot",
        seconds=stacks.RUN_SECONDS,
        every=0.2,
        what="the second run waits for the slot",
    )
    gate.touch()
    return first, second


def wait_for_new_run(stack: stacks.Stack) -> None:
    """Wait until the dispatcher has claimed what there was before this."""
    run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
    assert run.wait_for_end().type is State.COMPLETED


@pytest.mark.usefixtures("waiting_for_slot")
def test_only_scheduled_runs_are_started_late_ones_too_and_only_from_queues_that_are_not_paused(
    stack: stacks.Stack,
) -> None:
    deployment = stack.deployment("none")
    now = datetime.now(UTC)

    def run(**values: Any) -> stacks.Run:
        return light_jobs.run(stack, deployment, *light_jobs.COMPLETE, **values)

    stack.objects.change_queue(stack.pool, "default", is_paused=True)
    late = run(due=now - timedelta(hours=1))
    others = {
        state: run() for state in (State.PENDING, State.RUNNING, State.COMPLETED, State.CANCELLED)
    }
    for state, other in others.items():
        stack.objects.force(other.id, state)
    retrying = run(empirical_policy={"retries": 1, "retry_delay": 0})
    for state in (State.RUNNING, State.FAILED):
        stack.objects.propose(retrying.id, state)
    not_due = run(due=now + timedelta(hours=1))
    waiting.wait_for(
        lambda: late.state.name == "Late", seconds=LATE_SECONDS, every=0.5, what="a run is late"
    )
    before = late.history()

    stack.objects.change_queue(stack.pool, "default", is_paused=False)

    assert "PENDING" not in before
    assert late.wait_for_end().type is State.COMPLETED
    wait_for_new_run(stack)
    assert retrying.state.name == "AwaitingRetry"
    assert not_due.history() == ["SCHEDULED"]
    for state, other in others.items():
        assert other.state.type is state
    assert not [run for run in (retrying, not_due, *others.values()) if run.lines()]


@pytest.mark.usefixtures("waiting_for_slot")
def test_a_run_that_was_put_back_by_hand_is_started_again(stack: stacks.Stack) -> None:
    run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
    run.wait_for_end()

    now = datetime.now(UTC).isoformat()
    stack.objects.propose(run.id, State.SCHEDULED, "AwaitingRetry", scheduled_time=now)

    waiting.wait_for(
        lambda: len(run.lines()) == 2, seconds=stacks.RUN_SECONDS, what="it is executed again"
    )
    assert run.wait_for_end().type is State.COMPLETED
    assert run.history().count("PENDING") == 2


@pytest.mark.usefixtures("waiting_for_slot")
def test_a_pools_limit_is_kept_by_a_fleet_with_more_slots(stack: stacks.Stack) -> None:
    deployment = stack.deployment("none", pool=stack.pools[1])

    runs = [light_jobs.run(stack, deployment, *light_jobs.COMPLETE) for _ in range(3)]

    for run in runs:
        assert run.wait_for_end().type is State.COMPLETED
    claims = sorted(run.entered(State.PENDING) for run in runs)
    ends = sorted(run.entered(State.COMPLETED) for run in runs)
    assert all(end <= claim for end, claim in zip(ends, claims[1:], strict=False))


@pytest.mark.usefixtures("waiting_for_slot")
def test_beyond_its_deployments_limit_a_run_is_cancelled_where_that_is_wanted(
    stack: stacks.Stack,
) -> None:
    deployment = stack.deployment(
        "none", concurrency_limit=1, concurrency_options={"collision_strategy": "CANCEL_NEW"}
    )
    gate = stack.directory / "cancel-new"
    first = light_jobs.run(stack, deployment, "RUNNING", "note", f"wait:{gate}", "COMPLETED")
    light_jobs.wait_until_seen(first)

    second = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)

    assert second.wait_for_end().type is State.CANCELLED
    assert "PENDING" not in second.history()
    gate.touch()
    assert first.wait_for_end().type is State.COMPLETED
    assert not second.lines()


@pytest.mark.usefixtures("waiting_for_slot")
def test_polls_show_on_the_queue_and_make_the_deployment_ready(stack: stacks.Stack) -> None:
    deployment = stack.deployment("none")

    def is_ready() -> bool:
        row = stack.objects.client.transport.request(
            "GET", "/deployments/{id}", names={"id": str(deployment.id)}
        )
        return bool(row["status"] == "READY")

    waiting.wait_for(is_ready, seconds=60, every=0.5, what="the deployment is ready")
    queue = stack.objects.client.read_work_queue(stack.pool, "default")
    assert queue.last_polled is not None


def test_beyond_its_deployments_limit_a_run_waits_and_is_started_when_there_is_a_slot(
    waiting_for_slot: tuple[stacks.Run, stacks.Run],
) -> None:
    first, second = waiting_for_slot

    assert first.wait_for_end().type is State.COMPLETED
    assert second.wait_for_end(seconds=SLOT_SECONDS).type is State.COMPLETED
    assert second.entered(State.PENDING) >= first.entered(State.COMPLETED)
    assert len(second.lines()) == 1


def test_a_queue_or_a_pool_that_is_missing_is_told_and_served_once_it_is_there(
    new_stack: NewStack, server_objects: prefect_objects.PrefectObjects
) -> None:
    pool = server_objects.pool().name
    with new_stack(pool, DISPATCHER_WORK_QUEUES=QUEUE) as stack:
        worker = stack.worker_with_beat(concurrency=3)
        worker.wait_for_text(f"poll of work pool {pool!r} fails")
        server_objects.queue(pool, QUEUE)
        assert_queue_is_served(stack)

        server_objects.delete_pool(pool)
        # It creates the pool again, but no queue: those are the user's.
        waiting.wait_for(
            lambda: stack.pool_exists(pool), seconds=60, every=0.2, what="the pool is there again"
        )
        server_objects.queue(pool, QUEUE)
        assert_queue_is_served(stack)
        assert worker.is_running
        assert "Traceback" not in worker.text()


def assert_queue_is_served(stack: stacks.Stack) -> None:
    deployment = stack.deployment("none", work_queue_name=QUEUE)
    run = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
    assert run.wait_for_end().type is State.COMPLETED
