"""Workers that go away between a claim and its start, and what those that are left make of it."""

from __future__ import annotations

import pytest

from dispatcher.ledger import fleet
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests.conftest import NewStack

State = schemas.StateType

GRACE_SECONDS = 3.0
CANCEL_SECONDS = GRACE_SECONDS + 5.0
# A claim whose task has not begun is looked into after 10 s.
RESENT_SECONDS = 40.0
POOLS = {"processes": (), "threads": ("--pool", "threads")}


@pytest.mark.parametrize("pool", POOLS)
def test_the_last_worker_keeps_a_place_for_control_work(new_stack: NewStack, pool: str) -> None:
    settings = {
        "DISPATCHER_GRACE_SECONDS": str(GRACE_SECONDS),
        # On a slow machine quicker ticks would fill the place for control work, with none left for
        # messages of runs.
        "DISPATCHER_POLL_INTERVAL": "5",
        "DISPATCHER_RECOVER_INTERVAL": "3",
    }
    with new_stack(**settings) as stack:
        schedule = str(stack.directory / "schedule")
        options = ("-B", "-s", schedule, "--concurrency", "3", *POOLS[pool])
        worker = stack.worker("worker", *options)
        stack.wait_until_served(stack.pool)
        # Another one that has just gone: its slots count for some seconds more.
        gone = stack.seem_to_have(slots=2)
        deployment = stack.deployment("none")
        gate = stack.directory / "gate"
        steps = ("RUNNING", "note", f"wait:{gate}", "COMPLETED")
        runs = [light_jobs.run(stack, deployment, *steps) for _ in range(4)]
        waiting.wait_for(
            lambda: stack.waiting_messages() == 2, seconds=30, what="two are meant for the other"
        )
        stack.bring_late("worker")
        fleet.Fleet(stack.redis).leave(gone.key)
        waiting.wait_for(
            lambda: worker.text().count("keeps a place for control work") >= 2,
            seconds=60,
            what="two runs are left to other workers",
        )
        running = [run for run in runs if run.state.type is State.RUNNING]
        assert len(running) <= 2

        begun = waiting.wait_for(
            lambda: [run for run in runs if light_jobs.seen(run)],
            seconds=30,
            what="the job of a run has begun",
        )
        first = begun[0]
        first.cancel()
        assert first.wait_for_end(seconds=CANCEL_SECONDS).type is State.CANCELLED

        gate.touch()
        for run in runs:
            if run is not first:
                assert run.wait_for_end(seconds=RESENT_SECONDS).type is State.COMPLETED
                assert len(light_jobs.seen(run)) == 1
