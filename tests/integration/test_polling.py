"""Which runs are started, in which order and when."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.prefect_api import client, schemas
from dispatcher.testing import prefect_objects
from tests import faulty_proxy, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

POLLS = "/get_scheduled_flow_runs"
AHEAD_SECONDS = 5.0
SLOW_POLL_SECONDS = 30.0
BACKLOG = 300
SOON_SERVED = 30  # of the backlog, until it is seen that the other run has been


@pytest.fixture(scope="module")
def stack(
    new_stack: NewStack,
    server_objects: prefect_objects.PrefectObjects,
    proxy: faulty_proxy.FaultyProxy,
) -> Iterator[stacks.Stack]:
    """Serves two of a pool's queues with one slot, and claims nothing early."""
    pool = server_objects.pool().name
    for queue, priority in (("first", 1), ("second", 2), ("other", 3)):
        server_objects.queue(pool, queue, priority=priority)
    settings = {"DISPATCHER_WORK_QUEUES": "first,second", "DISPATCHER_PREFETCH_SECONDS": "0"}
    with new_stack(pool, api_url=proxy.api_url, **settings) as stack:
        stack.worker_with_beat(concurrency=2)
        stack.wait_until_served(pool)
        yield stack


def wait_for_polls(proxy: faulty_proxy.FaultyProxy, polls: int = 3) -> None:
    """Wait for that many polls; the answer to the last but one has been acted upon then."""
    enough = proxy.count(POLLS) + polls
    waiting.wait_for(lambda: proxy.count(POLLS) >= enough, seconds=60, what=f"{polls} polls")


def test_a_paused_pool_waits_and_then_priority_goes_before_lateness_and_queues_are_kept_apart(
    stack: stacks.Stack, proxy: faulty_proxy.FaultyProxy
) -> None:
    first, second, other = (
        stack.deployment("notes", file="dispatch_flows.py", work_queue_name=queue)
        for queue in ("first", "second", "other")
    )
    now = datetime.now(UTC)
    stack.objects.change_pool(stack.pool, is_paused=True)
    late = stack.run(second, due=now - timedelta(hours=1))
    urgent = stack.run(first, due=now)
    foreign = stack.run(other, due=now - timedelta(hours=1))
    wait_for_polls(proxy)
    assert not [run for run in (late, urgent, foreign) if "PENDING" in run.history()]

    stack.objects.change_pool(stack.pool, is_paused=False)

    assert late.wait_for_end().type is State.COMPLETED
    assert urgent.wait_for_end().type is State.COMPLETED
    assert urgent.entered(State.COMPLETED) < late.entered(State.PENDING)
    wait_for_polls(proxy)
    assert "PENDING" not in foreign.history()


def test_without_prefetch_a_run_is_not_even_claimed_before_its_time(stack: stacks.Stack) -> None:
    deployment = stack.deployment("notes", file="dispatch_flows.py", work_queue_name="first")
    due = datetime.now(UTC) + timedelta(seconds=AHEAD_SECONDS)

    run = stack.run(deployment, due=due)

    assert run.wait_for_end().type is State.COMPLETED
    assert run.entered(State.PENDING) >= due.timestamp()


def test_the_end_of_a_run_starts_the_next_one_without_waiting_for_a_poll(
    new_stack: NewStack, server_objects: prefect_objects.PrefectObjects
) -> None:
    pool = server_objects.pool().name
    with new_stack(pool, DISPATCHER_POLL_INTERVAL=str(SLOW_POLL_SECONDS)) as stack:
        deployment = stack.deployment("notes", file="dispatch_flows.py")
        runs = [stack.run(deployment) for _ in range(3)]
        stack.worker("worker", "--concurrency", "2")
        stack.beat()
        for run in runs:
            assert run.wait_for_end().type is State.COMPLETED

    claims = sorted(run.entered(State.PENDING) for run in runs)
    ends = sorted(run.entered(State.COMPLETED) for run in runs)
    pauses = [claim - end for end, claim in zip(ends, claims[1:], strict=False)]
    assert min(pauses) > 0  # one slot
    assert max(pauses) < SLOW_POLL_SECONDS / 3


def test_a_long_backlog_of_one_deployment_does_not_hold_up_another(
    new_stack: NewStack, server_objects: prefect_objects.PrefectObjects
) -> None:
    pool = server_objects.pool().name
    with new_stack(pool) as stack:
        backlog, other = (
            stack.deployment("notes", job_variables={"command": "true"}) for _ in range(2)
        )
        for _ in range(BACKLOG):
            stack.run(backlog)
        late = stack.run(other)
        stack.worker_with_beat(concurrency=3)  # two slots
        late.wait_for_state(State.CRASHED)  # what becomes of a job that tells nothing
        waiting_still = schemas.FlowRunFilter(state_types=[State.SCHEDULED], work_pool_names=[pool])
        left = len(stack.objects.client.read_flow_runs(waiting_still))
        stack.objects.change_pool(pool, is_paused=True)
    assert left >= min(BACKLOG, client.PAGE_LIMIT) - SOON_SERVED


def test_a_worker_that_may_not_create_its_pool_waits_for_it(new_stack: NewStack) -> None:
    with new_stack(DISPATCHER_CREATE_POOL_IF_NOT_FOUND="false") as stack:
        worker = stack.worker_with_beat(concurrency=2)
        worker.wait_for_text(f"work pool {stack.pool!r} does not exist and is not to be created")
        assert not stack.pool_exists(stack.pool)

        stack.objects.pool(stack.pool)

        stack.wait_until_served(stack.pool)
        assert worker.is_running
