"""Fleets that change while they work: a stop that takes too long, a worker lost, a new version."""

from __future__ import annotations

import os
import re
import shutil
import signal
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import dispatcher
from dispatcher.celery_app import tasks
from dispatcher.ledger import claims, fleet
from dispatcher.operations import drain as draining
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

ROOT = Path(__file__).parents[2]

STOP_TIMEOUT = 2.0
EXIT_SECONDS = 30.0
CANCEL_SECONDS = 15.0
LATER_VERSION = "99.0.0"

QUICK = {"DISPATCHER_CANCEL_INTERVAL": "0.5", "DISPATCHER_GRACE_SECONDS": "3"}
STEPS = ("RUNNING", "note")


def test_a_worker_whose_stop_takes_too_long_stops_its_runs(new_stack: NewStack) -> None:
    with new_stack(DISPATCHER_STOP_TIMEOUT=str(STOP_TIMEOUT), **QUICK) as stack:
        worker = stack.worker_with_beat(concurrency=2)
        stack.wait_until_served(stack.pool)
        run = light_jobs.run(stack, stack.deployment("none"), *STEPS, "wait:/no/such")
        pid = light_jobs.wait_until_seen(run)["pid"]

        worker.send_signal(signal.SIGTERM)
        worker.wait_for_text("Warm shutdown")
        assert stacks.is_alive(pid)

        assert worker.wait(STOP_TIMEOUT + EXIT_SECONDS) == 0
        assert "DISPATCHER_STOP_TIMEOUT" in worker.text()
        assert not stacks.is_alive(pid)
        assert run.state.type is State.CRASHED
        assert "told to stop" in str(run.state.message)


# Two versions at once


@dataclass(frozen=True)
class OtherVersion:
    """Where another version of the packages is; ``hue`` is what it says more in the ledger."""

    directory: Path
    number: str
    hue: str | None


@pytest.fixture(scope="module")
def later_version(tmp_path_factory: pytest.TempPathFactory) -> OtherVersion:
    """A copy of the packages that says more in its reports, its messages and the ledger.

    With ``OTHER_CHECKOUT`` set, the checkout of any other commit instead.
    """
    if other := os.environ.get("OTHER_CHECKOUT"):
        return OtherVersion(Path(other), version_in(Path(other)), None)
    directory = tmp_path_factory.mktemp("later")
    ignored = shutil.ignore_patterns("__pycache__")
    for package in ("dispatcher", "executors"):
        shutil.copytree(ROOT / package, directory / package, ignore=ignored)
    changes = {
        "__init__.py": (f'"{dispatcher.__version__}"', f'"{LATER_VERSION}"'),
        "ledger/fleet.py": (
            "    draining: bool = False\n",
            "    draining: bool = False\n    hue: int = 7\n",
        ),
        "celery_app/messenger.py": (
            "task_id=str(claim.claim_id),",
            "task_id=str(claim.claim_id), kwargs={'hue': 7},",
        ),
        "ledger/lua/open.lua": ("'stage', 'opened',", "'stage', 'opened', 'hue', '7',"),
    }
    for name, (now, later) in changes.items():
        file = directory / "dispatcher" / name
        text = file.read_text()
        assert text.count(now) == 1, name
        file.write_text(text.replace(now, later))
    return OtherVersion(directory, LATER_VERSION, "7")


def version_in(checkout: Path) -> str:
    found = re.search(r'__version__ = "(.+)"', (checkout / "dispatcher/__init__.py").read_text())
    assert found is not None
    return found[1]


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    """A dispatcher of this version: a worker for control with a beat, one for runs."""
    with new_stack(**QUICK) as stack:
        schedule = str(stack.directory / "schedule")
        control = ("-Q", tasks.CONTROL_QUEUE, "-B", "-s", schedule, "--concurrency", "2")
        stack.worker("old-control", *control)
        stack.worker("old-runs", "-Q", tasks.RUNS_QUEUE, "--concurrency", "3")
        stack.wait_until_served(stack.pool)
        yield stack


def start_later(
    stack: stacks.Stack, later_version: OtherVersion, name: str, *options: str
) -> stacks.CeleryProcess:
    """Start a worker of the later version."""
    arguments = ["worker", "--loglevel", "INFO", "--hostname", stack.node(name), *options]
    environment = {**stack.environment, "PYTHONPATH": str(later_version.directory)}
    worker = stacks.CeleryProcess(name, arguments, environment, stack.directory)
    stack.processes.append(worker)
    worker.wait_for_text(" ready.")
    return worker


def claim_of(stack: stacks.Stack, run: stacks.Run) -> claims.Claim:
    claim = stack.ledger.get(run.id)
    assert claim is not None
    return claim


def complete(stack: stacks.Stack, count: int) -> list[stacks.Run]:
    """Runs that have been executed."""
    deployment = stack.deployment("none")
    runs = [light_jobs.run(stack, deployment, *light_jobs.COMPLETE) for _ in range(count)]
    for run in runs:
        assert run.wait_for_end().type is State.COMPLETED
    return runs


def test_a_fleet_is_upgraded_worker_by_worker_and_no_run_is_lost_or_doubled(
    stack: stacks.Stack, later_version: OtherVersion
) -> None:
    old_control, old_runs = stack.processes
    gate = stack.directory / "gate"
    deployment = stack.deployment("none")
    patient = light_jobs.run(stack, deployment, *STEPS, f"wait:{gate}", "COMPLETED")
    cancelled = light_jobs.run(stack, deployment, *STEPS, "wait:/no/such")
    for run in (patient, cancelled):
        light_jobs.wait_until_seen(run)

    # The old worker executes what the new one claims and cancels.
    schedule = str(stack.directory / "later-schedule")
    control = ("-Q", tasks.CONTROL_QUEUE, "-B", "-s", schedule, "--concurrency", "2")
    start_later(stack, later_version, "new-control", *control)
    versions = {node.name: node.version for node in fleet.Fleet(stack.redis).nodes()}
    assert versions[stack.node("new-control")] == later_version.number
    assert old_control.stop() == 0
    by_old = complete(stack, 4)
    assert {claim_of(stack, run).node for run in by_old} == {stack.node("old-runs")}
    assert stack.redis.hget(f"{{dispatcher}}:claim:{by_old[0].id}", "hue") == later_version.hue
    cancelled.cancel()
    assert cancelled.wait_for_end(seconds=CANCEL_SECONDS).type is State.CANCELLED

    # The new one takes over, and the old one is let go.
    start_later(stack, later_version, "new-runs", "-Q", tasks.RUNS_QUEUE, "--concurrency", "3")
    drain = draining.Drain(fleet.Fleet(stack.redis), stack.ledger)
    nodes = drain.choose([stack.node("old-runs")], every=False)
    drain.begin(nodes)
    waiting.wait_for(lambda: drain.heeded(nodes), seconds=10, what="the old worker drains")
    by_new = complete(stack, 4)
    assert {claim_of(stack, run).node for run in by_new} == {stack.node("new-runs")}
    assert drain.running(nodes) == {stack.node("old-runs"): 1}
    old_runs.send_signal(signal.SIGTERM)
    gate.touch()
    assert old_runs.wait(EXIT_SECONDS) == 0

    assert patient.wait_for_end().type is State.COMPLETED
    for run in (patient, *by_old, *by_new):
        assert len(light_jobs.seen(run)) == 1
        assert [run.history().count(state) for state in ("PENDING", "RUNNING")] == [1, 1]
