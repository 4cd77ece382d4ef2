"""Processes that a flow has moved to a session of their own, when its worker or it ends."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import psutil
import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import stack as stacks
from tests import waiting
from tests.conftest import NewStack

State = schemas.StateType

# A look is made every 10 s.
SWEPT_SECONDS = 20.0
RUNS_ALONE = ("-Q", tasks.RUNS_QUEUE, "--concurrency", "2")


@pytest.fixture
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    with new_stack() as stack:
        schedule = str(stack.directory / "schedule")
        stack.worker("control", "-Q", tasks.CONTROL_QUEUE, "-B", "-s", schedule, "-c", "2")
        stack.wait_until_served(stack.pool)
        yield stack


def lose(stack: stacks.Stack, worker: stacks.CeleryProcess, *, but: int) -> None:
    """Kill a worker with all its processes but one, where no worker for control is left."""
    assert stack.processes[0].stop() == 0
    family = psutil.Process(worker.pid)
    # What a job has moved away is a child of the fork server, where there was one in time for it.
    doomed = [family, *(each for each in family.children(recursive=True) if each.pid != but)]
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for process in doomed:
            process.send_signal(number)
    worker.wait()


def wait_until_swept(pid: int) -> None:
    waiting.wait_for(
        lambda: not stacks.is_alive(pid), seconds=SWEPT_SECONDS, what="it has been swept up"
    )


@pytest.mark.parametrize("is_there", [True, False])
def test_what_a_killed_worker_leaves_is_ended_by_the_next_one_on_its_host(
    stack: stacks.Stack, is_there: bool
) -> None:
    lost = stack.worker("lost", *RUNS_ALONE)
    run = stack.run(stack.deployment("waits_with_children"))
    escapee = int(run.wait_for_line("escapee").split()[1])
    if is_there:
        stack.worker("next", *RUNS_ALONE)
    lose(stack, lost, but=escapee)
    assert stacks.is_alive(escapee)
    if not is_there:
        stack.worker("next", *RUNS_ALONE)
    wait_until_swept(escapee)


@pytest.mark.parametrize("kill_escaped", [False, True])
def test_what_a_flow_leaves_behind_when_it_completes_is_its_choice(
    stack: stacks.Stack, kill_escaped: bool
) -> None:
    stack.worker("runs", *RUNS_ALONE)
    variables = {"kill_escaped": kill_escaped}
    run = stack.run(stack.deployment("leaves_behind", job_variables=variables))
    left = int(run.wait_for_line("escapee").split()[1])
    assert run.wait_for_end().type is State.COMPLETED
    waiting.wait_for(
        lambda: not stack.ledger.open_claims(), seconds=stacks.RUN_SECONDS, what="its job is over"
    )
    try:
        assert stacks.is_alive(left) is not kill_escaped
    finally:
        if not kill_escaped:
            os.kill(left, signal.SIGKILL)
