"""Runs that are paused: in their process, which may be lost, or suspended without one."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

LEASE_SECONDS = 5.0
# As for any lost run: the longest gap that goes unnoted, the holder's margin, some looks.
RECOVERY_SECONDS = 31.0


@pytest.fixture
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    settings = {"DISPATCHER_LEASE_SECONDS": str(LEASE_SECONDS), "DISPATCHER_RECOVER_INTERVAL": "1"}
    with new_stack(**settings) as stack:
        schedule = str(stack.directory / "schedule")
        stack.worker("control", "-Q", tasks.CONTROL_QUEUE, "-B", "-s", schedule, "-c", "2")
        stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", "2")
        stack.wait_until_served(stack.pool)
        yield stack


def test_a_paused_run_whose_worker_is_lost_is_crashed_before_anybody_resumes_it_in_vain(
    stack: stacks.Stack,
) -> None:
    run = stack.run(stack.deployment("pauses"))
    run.wait_for_state(State.PAUSED)

    stack.processes[-1].send_signal(signal.SIGKILL)

    assert run.wait_for_end(seconds=RECOVERY_SECONDS).type is State.CRASHED
    assert run.history()[-2:] == ["PAUSED", "CRASHED"]
    assert stack.node("runs") in str(run.state.message)


def test_a_paused_run_whose_claim_is_lost_with_its_worker_is_found_all_the_same(
    stack: stacks.Stack,
) -> None:
    run = stack.run(stack.deployment("pauses"))
    run.wait_for_state(State.PAUSED)

    stack.processes[-1].send_signal(signal.SIGKILL)
    stack.redis.flushdb()

    assert run.wait_for_end(seconds=2 * RECOVERY_SECONDS).type is State.CRASHED
