"""Flows on other Pythons than the worker's: warm, and cancelled with all that belongs to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.prefect_api import schemas
from tests import environments, waiting
from tests import stack as stacks
from tests.conftest import NewStack
from tests.e2e import pythons

State = schemas.StateType

FILE = "environment_flows.py"
SECONDS = 120.0
RELEASES = {"3.13": "trixie", "3.14": "sid"}


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    if reason := pythons.missing() or environments.missing():
        pytest.skip(reason)
    with new_stack(DISPATCHER_CANCEL_INTERVAL="0.5", DISPATCHER_START="warm") as stack:
        stack.control_worker()
        stack.worker("runs", "-Q", "dispatcher.runs", "-c", "2")
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.mark.timeout(600)
@pytest.mark.parametrize("version", RELEASES)
def test_flows_run_warm_on_another_python_and_are_cancelled(
    stack: stacks.Stack, tmp_path: Path, version: str
) -> None:
    made = pythons.make(tmp_path, RELEASES[version], version)
    environment = tmp_path / "environment"
    environments.make_with(environment, f"prefect=={environments.NEWEST}", python=made)
    variables = {"python": str(environment)}

    told = stack.run(stack.deployment("tells", file=FILE, job_variables=variables))
    assert told.wait_for_end(seconds=SECONDS).type is State.COMPLETED
    said = dict(line.split("=", 1) for line in told.lines())
    assert said["python"].startswith(f"{version}.")
    assert not sys.version.startswith(f"{version}.")
    assert said["prefix"] == str(environment)
    assert said["forked"] == "True"
    assert said["dispatcher"] == "absent"

    waits = stack.run(stack.deployment("waits", file=FILE, job_variables=variables))
    pid, child = (int(text) for text in waits.wait_for_line("running").split()[1:])
    waits.cancel()
    assert waits.wait_for_end(seconds=SECONDS).type is State.CANCELLED
    waits.wait_for_line("cancelled")
    waiting.wait_for(
        lambda: not stacks.is_alive(pid) and not stacks.is_alive(child),
        seconds=stacks.VANISH_SECONDS,
        what="nothing of it is left",
    )
