"""What becomes of the runs of a long downtime, on a real server."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests.conftest import NewStack

State = schemas.StateType

COPIES = 100


def test_a_hundred_late_copies_are_skipped_in_one_go_and_the_latest_is_executed(
    new_stack: NewStack,
) -> None:
    with new_stack() as stack:
        stack.control_worker()
        stack.wait_until_served(stack.pool)
        deployment = stack.deployment("none", job_variables={"skip_if_late": "latest-only"})
        now = datetime.now(UTC)
        runs = [
            light_jobs.run(
                stack,
                deployment,
                *light_jobs.COMPLETE,
                due=now - timedelta(minutes=minutes),
            )
            for minutes in range(COPIES)
        ]
        stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", "2")
        waiting.wait_for(
            lambda: runs[-1].state.is_terminal, seconds=60, what="the oldest is skipped"
        )
        assert runs[0].wait_for_end().type is State.COMPLETED
        ends = [run.wait_for_end() for run in runs[1:]]
        assert {end.type for end in ends} == {State.CANCELLED}
        assert all("latest-only" in str(end.message) for end in ends)
        assert [run for run in runs if light_jobs.seen(run)] == runs[:1]
