"""A flow that takes more memory than it may, beside others on the same worker."""

from __future__ import annotations

from typing import Any

from dispatcher.prefect_api import schemas
from tests import dispatcher_command, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

MIB = 2**20
# Beside what it takes, a flow has its interpreter and Prefect.
MODEST_MIB = 40
GREEDY_MIB = 4096
LIMIT = "1GiB"
# The first measurement of a job, and the renewal of its lease that tells of it.
SHOWN_SECONDS = 30.0


def memory_of(stack: stacks.Stack, runs: list[stacks.Run]) -> list[int]:
    """What ``dispatcher status`` says that the runs use."""
    _, told = dispatcher_command.status(stack)
    found: dict[str, Any] = {run["flow_run_id"]: run for run in told["runs"]}
    return [(found.get(str(run.id)) or {}).get("memory") or 0 for run in runs]


def test_a_flow_that_takes_four_gigabytes_is_crashed_alone_with_limit_and_peak(
    new_stack: NewStack,
) -> None:
    with new_stack() as stack:
        worker = stack.worker_with_beat(5)
        stack.wait_until_served(stack.pool)
        deployment = stack.deployment("takes_memory", job_variables={"memory_limit": LIMIT})
        go = stack.directory / "go"
        never = stack.directory / "never"
        modest = [stack.run(deployment, {"mebibytes": MODEST_MIB, "go": str(go)}) for _ in range(3)]
        for run in modest:
            run.wait_for_line("took")

        greedy = stack.run(deployment, {"mebibytes": GREEDY_MIB, "go": str(never)})

        end = greedy.wait_for_end()
        assert end.type is State.CRASHED
        assert "its limit is 1.0 GiB (job variable memory_limit), its peak was" in str(end.message)
        assert [run.state.type for run in modest] == [State.RUNNING] * 3
        waiting.wait_for(
            lambda: min(memory_of(stack, modest)) > MODEST_MIB * MIB,
            seconds=SHOWN_SECONDS,
            what="the status shows what each run uses",
        )
        go.touch()
        assert [run.wait_for_end().type for run in modest] == [State.COMPLETED] * 3
        assert "Traceback" not in worker.text()


def test_a_limit_that_nobody_understands_is_told_on_the_runs_page(new_stack: NewStack) -> None:
    with new_stack() as stack:
        stack.worker_with_beat(2)
        stack.wait_until_served(stack.pool)
        deployment = stack.deployment("completes", job_variables={"memory_limit": "2 gigs"})

        end = stack.run(deployment).wait_for_end()

        assert end.type is State.CRASHED
        assert "memory_limit is '2 gigs'" in str(end.message)
        assert '"2GiB"' in str(end.message)
