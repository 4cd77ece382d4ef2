"""Celery's own time limits, which users set for a whole installation."""

from __future__ import annotations

import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

LIMIT_SECONDS = 5
GRACE_SECONDS = 3.0
# The pool looks at the clock once a second or so.
END_SECONDS = LIMIT_SECONDS + GRACE_SECONDS + 5.0


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("--time-limit", "Celery's time limit of 5 s"),
        ("--soft-time-limit", "Celery's soft time limit of 5 s"),
    ],
)
def test_a_flow_that_takes_too_long_is_stopped_and_its_page_names_the_limit(
    new_stack: NewStack, option: str, words: str
) -> None:
    with new_stack(DISPATCHER_GRACE_SECONDS=str(GRACE_SECONDS)) as stack:
        schedule = str(stack.directory / "schedule")
        stack.worker("control", "-Q", tasks.CONTROL_QUEUE, "-B", "-s", schedule, "-c", "2")
        worker = stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", "1", option, str(LIMIT_SECONDS))
        stack.wait_until_served(stack.pool)
        # A light job runs well within the limit, however busy the machine.
        deployment = stack.deployment("completes")
        never = stack.directory / "never"
        run = light_jobs.run(stack, deployment, "RUNNING", "note", f"wait:{never}")
        pid = int(light_jobs.wait_until_seen(run)["pid"])

        assert run.wait_for_end(seconds=END_SECONDS).type is State.CRASHED

        assert words in str(run.state.message)
        assert f"{option} or task" in str(run.state.message)
        waiting.wait_for(
            lambda: not stacks.is_alive(pid), seconds=GRACE_SECONDS, what="its process is gone"
        )
        said = [line for line in worker.text().splitlines() if "time limit" in line.lower()]
        # Besides Celery's own line, which has the task's result.
        assert len([line for line in said if "[celery.app.trace]" not in line]) == 1
        assert "Traceback" not in worker.text()
        # The slot is free, and the next run has its own time.
        after = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
        assert after.wait_for_end().type is State.COMPLETED
