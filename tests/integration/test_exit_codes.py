"""Runs whose job has no Prefect inside: their states, output and end come from the exit code."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import stack as stacks
from tests import waiting
from tests.conftest import NewStack

State = schemas.StateType

SECONDS = 60.0
SETTINGS = {
    "DISPATCHER_CANCEL_INTERVAL": "0.5",
    "DISPATCHER_GRACE_SECONDS": "2",
    "DISPATCHER_LEASE_SECONDS": "5",
    "DISPATCHER_RECOVER_INTERVAL": "1",
}


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    with new_stack(**SETTINGS) as stack:
        stack.control_worker()
        stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", "3")
        stack.wait_until_served(stack.pool)
        yield stack


def command(stack: stacks.Stack, script: str, **variables: object) -> stacks.Run:
    """A run of a shell script."""
    line = shlex.join(["sh", "-c", script])
    values = {"command": line, "report": "exit-code", **variables}
    return stack.run(stack.deployment("none"), job_variables=values)


def logged(run: stacks.Run, line: str) -> None:
    waiting.wait_for(
        lambda: any(line in message for message in run.log_messages()),
        seconds=SECONDS,
        what=f"{line!r} is on the run's page",
    )


def test_a_command_is_running_and_completed_with_its_output(stack: stacks.Stack) -> None:
    run = command(stack, "echo some output; echo and an error >&2; sleep 0.5")
    state = run.wait_for_end(seconds=SECONDS)
    assert state.type is State.COMPLETED
    assert run.history()[-3:] == ["PENDING", "RUNNING", "COMPLETED"]
    logged(run, "some output")
    logged(run, "and an error")


def test_a_command_that_fails_says_how_and_shows_its_last_lines(stack: stacks.Stack) -> None:
    run = command(stack, "seq 1 100; echo no such table >&2; exit 3")
    state = run.wait_for_end(seconds=SECONDS)
    assert state.type is State.FAILED
    assert "exit code 3" in str(state.message)
    assert str(state.message).endswith("99\n100\nno such table")
    assert "\n80\n" not in str(state.message)


def test_a_command_that_is_killed_is_crashed(stack: stacks.Stack) -> None:
    state = command(stack, "kill -SEGV $$").wait_for_end(seconds=SECONDS)
    assert state.type is State.CRASHED
    assert "native code" in str(state.message)


def test_one_that_does_not_exist_says_so(stack: stacks.Stack) -> None:
    run = stack.run(
        stack.deployment("none"),
        job_variables={"command": "no-such-program", "report": "exit-code"},
    )
    state = run.wait_for_end(seconds=SECONDS)
    assert state.type is State.CRASHED
    assert "was not found" in str(state.message)


def test_a_python_script_and_a_stubborn_one_are_cancelled(
    stack: stacks.Stack, tmp_path: Path
) -> None:
    script = tmp_path / "etl.py"
    script.write_text("import time\nprint('working', flush=True)\ntime.sleep(300)\n")
    polite = stack.run(
        stack.deployment("none"),
        job_variables={
            "command": shlex.join([sys.executable, str(script)]),
            "report": "exit-code",
        },
    )
    stubborn = command(stack, "trap '' TERM; echo working; while :; do sleep 0.1; done")
    for run in (polite, stubborn):
        run.wait_for_state(State.RUNNING)
        logged(run, "working")
        run.cancel()
    for run in (polite, stubborn):
        assert run.wait_for_end(seconds=SECONDS).type is State.CANCELLED


def test_one_that_leaves_a_process_behind_ends_and_takes_it_along(stack: stacks.Stack) -> None:
    run = command(stack, "sleep 300 & echo left $!")
    assert run.wait_for_end(seconds=SECONDS).type is State.COMPLETED
    logged(run, "left ")
    [message] = [each for each in run.log_messages() if "left " in each]
    assert not stacks.is_alive(int(message.rpartition(" ")[2]))


def test_one_whose_worker_is_killed_is_crashed(new_stack: NewStack) -> None:
    with new_stack(**SETTINGS) as stack:
        stack.control_worker()
        worker = stack.worker("lost", "-Q", tasks.RUNS_QUEUE, "-c", "1")
        stack.wait_until_served(stack.pool)
        run = command(stack, "sleep 300")
        run.wait_for_state(State.RUNNING)
        worker.send_signal(signal.SIGKILL)
        assert run.wait_for_end(seconds=SECONDS).type is State.CRASHED


def test_a_mistake_in_the_variable_is_told(stack: stacks.Stack) -> None:
    state = command(stack, "true", report="exit code").wait_for_end(seconds=SECONDS)
    assert state.type is State.CRASHED
    assert "neither 'engine' nor 'exit-code'" in str(state.message)
