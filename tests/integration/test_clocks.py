"""Worker hosts whose clocks are wrong: what is due is so by the server's clock."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.prefect_api import schemas
from tests import clocks, light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

START_SECONDS = 60.0
OFF = 300  # seconds

pytestmark = pytest.mark.skipif(not clocks.FAKETIME.exists(), reason="libfaketime is not installed")


def start_beat(stack: stacks.Stack) -> None:
    """Start a beat whose clock is right: libfaketime fails now and then in its shortest sleeps."""
    right = {key: value for key, value in stack.environment.items() if key != "LD_PRELOAD"}
    schedule = str(stack.directory / "beat-schedule")
    arguments = ["beat", "--loglevel", "INFO", "--schedule", schedule]
    stack.processes.append(stacks.CeleryProcess("beat", arguments, right, stack.directory))


@pytest.mark.parametrize("off", [-OFF, OFF])
def test_a_run_starts_when_it_is_due_although_the_clock_of_its_worker_is_wrong(
    new_stack: NewStack, off: int
) -> None:
    with new_stack(**clocks.wrong_clock(off), DISPATCHER_PREFETCH_SECONDS="2") as stack:
        worker = stack.worker("worker", "--concurrency", "3")
        start_beat(stack)
        stack.wait_until_served(stack.pool)
        deployment = stack.deployment("none")
        early = datetime.now(UTC) + timedelta(seconds=OFF / 2)
        not_due = light_jobs.run(stack, deployment, *light_jobs.COMPLETE, due=early)
        asked_at = time.time()
        due = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)

        assert due.wait_for_end(seconds=START_SECONDS).type is State.COMPLETED
        assert time.time() - asked_at < START_SECONDS
        assert not_due.state.type is State.SCHEDULED
        told = [line for line in worker.text().splitlines() if "clock of this host is" in line]
        assert len(told) == 1
        assert "fast" in told[0] if off > 0 else "slow" in told[0]


def test_ticks_of_a_beat_on_another_host_count_however_the_clocks_differ(
    new_stack: NewStack,
) -> None:
    with new_stack(**clocks.wrong_clock(OFF), DISPATCHER_RECOVER_INTERVAL="1") as stack:
        worker = stack.worker("worker", "--concurrency", "3")
        start_beat(stack)
        waiting.wait_for(
            lambda: worker.text().count("Task dispatcher.recover[") > 3,
            seconds=START_SECONDS,
            what="ticks are carried out",
        )
        assert "Discarding revoked task" not in worker.text()
