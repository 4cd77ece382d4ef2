"""Flows on other Pythons than the worker's: warm, and cancelled with all that belongs to them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.prefect_api import schemas
from tests import environment_runs, environments
from tests import stack as stacks
from tests.conftest import NewStack
from tests.e2e import pythons

State = schemas.StateType

FILE, SECONDS = environment_runs.FILE, environment_runs.SECONDS
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
    said = environment_runs.said(told)
    assert said["python"].startswith(f"{version}.")
    assert not sys.version.startswith(f"{version}.")
    assert said["prefix"] == str(environment)
    assert said["forked"] == "True"
    assert said["dispatcher"] == "absent"

    waits = stack.run(stack.deployment("waits", file=FILE, job_variables=variables))
    environment_runs.cancel(waits)
