"""Runs that start others and wait for them, in every slot that there is."""

from __future__ import annotations

import json

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import dispatcher_command, waiting
from tests.conftest import NewStack

State = schemas.StateType

STANDSTILL = "every slot (3) is held by a run whose child runs are due"
TOLD_SECONDS = 60.0
END_SECONDS = 60.0


def test_parents_that_hold_every_slot_are_told_of_and_go_on_with_one_more_worker(
    new_stack: NewStack,
) -> None:
    with new_stack(DISPATCHER_RECOVER_INTERVAL="1") as stack:
        worker = stack.worker_with_beat(concurrency=4)
        stack.wait_until_served(stack.pool)
        child = stack.deployment("completes")
        parent = stack.deployment("waits_for_child")
        runs = [stack.run(parent, {"deployment": str(child.id)}) for _ in range(3)]
        for run in runs:
            run.wait_for_state(State.RUNNING)

        waiting.wait_for(
            lambda: STANDSTILL in json.dumps(dispatcher_command.status(stack)[1]["problems"]),
            seconds=TOLD_SECONDS,
            every=1.0,
            what="the status tells of the standstill",
        )
        waiting.wait_for(
            lambda: STANDSTILL in worker.text(), seconds=TOLD_SECONDS, what="the log tells of it"
        )
        assert worker.text().count(STANDSTILL) == 1

        stack.worker("more", "-Q", tasks.RUNS_QUEUE, "--concurrency", "1")
        for run in runs:
            assert run.wait_for_end(seconds=END_SECONDS).type is State.COMPLETED
        assert dispatcher_command.status(stack)[1]["problems"] == []
