"""What people see who watch a real fleet with a real Flower in a real browser.

With ``FLOWER_PICTURE`` in its environment, the page is also written there, for the documentation.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dispatcher.celery_app import tasks
from dispatcher.ledger import fleet
from dispatcher.prefect_api import schemas
from tests import light_jobs
from tests import stack as stacks
from tests.conftest import NewStack
from tests.e2e import browser
from tests.integration import test_flower

State = schemas.StateType

pytestmark = pytest.mark.skipif(browser.binary() is None, reason="no Chromium is installed")

SLOTS = 4

CELLS = """
[...document.querySelectorAll('#tasks-table tbody tr')].map(row =>
  [...row.querySelectorAll('td')].map(cell => cell.innerText.trim()))
"""


@pytest.fixture
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    with new_stack(DISPATCHER_CANCEL_INTERVAL="1", DISPATCHER_GRACE_SECONDS="3") as stack:
        stack.control_worker()
        stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", str(SLOTS))
        stack.wait_until_served(stack.pool)
        yield stack


def deployment(stack: stacks.Stack, entry: str, flow: str, name: str) -> schemas.Deployment:
    """A deployment under names that people give."""
    return stack.deployment(entry, flow_id=str(stack.objects.flow(flow).id), name=name)


def cancelled_while_queued(stack: stacks.Stack, light: schemas.Deployment) -> stacks.Run:
    """A run that was cancelled while its message waited for a worker."""
    busy = [light_jobs.run(stack, light, *test_flower.ENDLESS) for _ in range(SLOTS)]
    for run in busy:
        light_jobs.wait_until_seen(run)
    gone = stack.seem_to_have(slots=1)
    queued = light_jobs.run(stack, light, *light_jobs.COMPLETE)
    queued.wait_for_state(State.PENDING)
    queued.cancel()
    assert queued.wait_for_end().type is State.CANCELLED
    fleet.Fleet(stack.redis).leave(gone.key)
    stack.bring_late("runs")
    for run in busy:
        run.cancel()
    for run in busy:
        run.wait_for_end()
    return queued


def put_back_once(stack: stacks.Stack, light: schemas.Deployment) -> stacks.Run:
    """A run whose pool process was killed, and that completed when it was started again."""
    gate = stack.directory / "gate"
    steps = ("RUNNING", "note", f"wait:{gate}", "COMPLETED")
    run = light_jobs.run(stack, light, *steps, job_variables={"infra_retries": 1})
    pool_process = psutil.Process(light_jobs.wait_until_seen(run)["pid"]).parent()
    assert pool_process is not None
    pool_process.kill()
    run.wait_for_state(State.SCHEDULED)
    gate.touch()
    return run


def test_the_list_shows_every_run_with_its_name_and_its_true_state(
    stack: stacks.Stack, tmp_path: Path
) -> None:
    flower = test_flower.Flower(stack)
    light = deployment(stack, "none", "etl", "nightly")
    cancelled = light_jobs.run(stack, light, *test_flower.ENDLESS)
    light_jobs.wait_until_seen(cancelled)
    cancelled.cancel()
    runs = {
        "SUCCESS": light_jobs.run(stack, light, *light_jobs.COMPLETE),
        "FAILURE": stack.run(deployment(stack, "raises", "load", "hourly")),
        "REVOKED": cancelled,
        "RETRY": stack.run(deployment(stack, "suspends", "ask", "by-hand")),
    }
    crashed = light_jobs.run(stack, light, "RUNNING", "exit:3")
    queued = cancelled_while_queued(stack, light)
    again = put_back_once(stack, light)
    for run in (crashed, cancelled, queued, again, runs["SUCCESS"], runs["FAILURE"]):
        run.wait_for_end()
    others = (("FAILURE", crashed), ("REVOKED", queued), ("RETRY", again), ("SUCCESS", again))
    for state, run in (*runs.items(), *others):
        flower.wait_for(run, state)

    with browser.chromium(tmp_path) as page:
        page.open(f"{flower.url}/tasks")
        page.wait_for("load/hourly")
        rows = page.evaluate(CELLS)
        for state, run in runs.items():
            (row,) = [row for row in rows if run.flow_run.name in " ".join(row)]
            assert state in row
        twice = [row for row in rows if again.flow_run.name in " ".join(row)]
        assert {state for row in twice for state in row} >= {"RETRY", "SUCCESS"}
        names = {row[0] for row in rows}
        assert names == {"etl/nightly", "load/hourly", "ask/by-hand"}
        page.picture(Path(os.environ.get("FLOWER_PICTURE", tmp_path / "tasks.png")))
        page.type("input[type=search]", "state:FAILURE")
        page.wait_for("Showing 1 to 2 of 2")
    # What its overview adds up.
    workers = json.loads(flower.get("/workers?json=1"))["data"]
    assert sum(each.get("task-failed") or 0 for each in workers) == 2
    assert sum(each.get("task-succeeded") or 0 for each in workers) == 2
