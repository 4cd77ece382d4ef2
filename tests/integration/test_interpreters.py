"""Flows in environments of their own: several releases of Prefect in one worker at once."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dispatcher.prefect_api import schemas
from tests import environment_runs, environments
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

FILE, SECONDS = environment_runs.FILE, environment_runs.SECONDS


@pytest.fixture(scope="module")
def made(pytestconfig: pytest.Config) -> dict[str, Path]:
    if reason := environments.missing():
        pytest.skip(reason)
    directory = pytestconfig.cache.mkdir("environments")
    return {
        release: environments.make(directory, release)
        for release in (environments.OLDEST, environments.NEWEST)
    }


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    with new_stack(DISPATCHER_CANCEL_INTERVAL="0.5", DISPATCHER_START="auto") as stack:
        stack.control_worker()
        stack.worker("runs", "-Q", "dispatcher.runs", "-c", "4", "-P", "threads")
        stack.wait_until_served(stack.pool)
        yield stack


def tells(
    stack: stacks.Stack, python: Path | str | None, *, start: str = "warm", **variables: Any
) -> schemas.Deployment:
    """A deployment whose flow tells in what it is executed."""
    chosen = {} if python is None else {"python": str(python)}
    job_variables = {"start": start, **chosen, **variables}
    return stack.deployment("tells", file=FILE, job_variables=job_variables)


def test_each_environment_has_its_own_flows_warm_and_cold_at_once(
    stack: stacks.Stack, made: dict[str, Path]
) -> None:
    deployments = {release: tells(stack, path) for release, path in made.items()}
    for deployment in deployments.values():  # begins its fork server
        assert stack.run(deployment).wait_for_end(seconds=SECONDS).type is State.COMPLETED
    warm = {release: stack.run(deployment) for release, deployment in deployments.items()}
    own = stack.run(tells(stack, None))
    plain = stack.run(
        stack.deployment("none"),
        job_variables={"command": "sh -c 'echo no Prefect here'", "report": "exit-code"},
    )
    cold = stack.run(tells(stack, made[environments.OLDEST] / "bin" / "python", start="cold"))
    for run in (*warm.values(), own, cold, plain):
        assert run.wait_for_end(seconds=SECONDS).type is State.COMPLETED

    for release, run in warm.items():
        told = environment_runs.said(run)
        assert told["prefect"] == release
        assert told["prefix"] == told["VIRTUAL_ENV"] == str(made[release])
        assert told["dispatcher"] == "absent"
        assert told["forked"] == "True"
        assert Path(told["pip"]).parent == made[release] / "bin"
        waited = run.entered(State.RUNNING) - run.entered(State.SCHEDULED)
        print(f"{release} due to Running: {waited:.2f} s")
    assert environment_runs.said(own)["prefix"] == sys.prefix
    assert environment_runs.said(cold)["prefect"] == environments.OLDEST
    assert environment_runs.said(cold)["forked"] == "False"


def test_a_run_in_another_environment_is_cancelled_with_its_hooks_and_children(
    stack: stacks.Stack, made: dict[str, Path]
) -> None:
    deployment = stack.deployment(
        "waits", file=FILE, job_variables={"python": str(made[environments.OLDEST])}
    )
    environment_runs.cancel(stack.run(deployment))


def test_what_is_wrong_with_an_interpreter_is_on_the_runs_page(
    stack: stacks.Stack, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    (empty / "bin").mkdir(parents=True)
    (empty / "bin" / "python").symlink_to(Path(sys.executable).resolve())
    (empty / "pyvenv.cfg").write_text(f"home = {Path(sys.executable).resolve().parent}\n")
    for python, complaint in (
        (tmp_path / "missing", "does not exist on this host"),
        (empty, "has no package 'prefect'"),
    ):
        state = stack.run(tells(stack, python)).wait_for_end(seconds=SECONDS)
        assert state.type is State.CRASHED
        assert complaint in (state.message or "")


def test_what_a_job_in_another_environment_leaves_behind_ends_with_its_worker(
    new_stack: NewStack, made: dict[str, Path]
) -> None:
    python = str(made[environments.OLDEST])
    with new_stack(DISPATCHER_START="warm", DISPATCHER_PYTHON=python) as stack:
        stack.control_worker()
        worker = stack.worker("runs", "-Q", "dispatcher.runs", "-c", "1")
        stack.wait_until_served(stack.pool)
        run = stack.run(stack.deployment("waits", file=FILE))
        pid, child = environment_runs.wait_until_running(run)
        assert f"{python}/bin/python" in psutil.Process(pid).cmdline()
        worker.send_signal(signal.SIGKILL)
        environment_runs.wait_until_gone(pid, child)
