"""How soon a run starts, and a cancel, where only Prefect's events tell of them."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator

import pytest

from dispatcher.prefect_api import schemas
from tests import stack as stacks
from tests import waiting
from tests.conftest import NewStack

State = schemas.StateType

QUICK_ENGINE = shlex.join([sys.executable, "-I", "-S", str(stacks.FLOWS / "quick_engine.py")])
NEVER = "600"  # seconds between two ticks: what happens, happens without one
PROMPT_SECONDS = 10.0  # the ticks are minutes apart
HEARD = "Prefect's events are heard"


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    settings = {"DISPATCHER_POLL_INTERVAL": NEVER, "DISPATCHER_CANCEL_INTERVAL": NEVER}
    with new_stack(**settings) as stack:
        worker = stack.worker_with_beat(concurrency=3)
        stack.wait_until_served(stack.pool)
        worker.wait_for_text(HEARD)
        yield stack


def test_an_idle_fleet_starts_a_run_as_soon_as_it_is_made(stack: stacks.Stack) -> None:
    deployment = stack.deployment("notes", job_variables={"command": QUICK_ENGINE})
    for _ in range(3):
        asked = time.time()
        run = stack.run(deployment)
        assert run.wait_for_end(seconds=30).type is State.COMPLETED
        assert run.entered(State.RUNNING) - asked < PROMPT_SECONDS


def test_a_cancel_starts_as_soon_as_it_is_asked_for(stack: stacks.Stack) -> None:
    sleep = shlex.join(["sleep", "60"])
    deployment = stack.deployment("notes", job_variables={"command": sleep})
    run = stack.run(deployment)
    waiting.wait_for(lambda: run.read().infrastructure_pid, seconds=30, what="the job is there")
    run.objects.force(run.id, State.RUNNING)

    run.cancel()
    asked = time.time()

    waiting.wait_for(
        lambda: (claim := stack.ledger.get(run.id)) and claim.cancel_requested,
        seconds=20,
        every=0.01,
        what="its holder is to stop it",
    )
    assert time.time() - asked < PROMPT_SECONDS
    assert run.wait_for_end(seconds=60).type is State.CANCELLED
