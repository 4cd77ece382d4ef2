"""How jobs end, where their code comes from, and what a run shows of where it was executed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.prefect_api import schemas
from tests import light_jobs
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

RETRY = {"retries": 1, "retry_delay": 600}
STEP = "prefect.deployments.steps.set_working_directory"


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    with new_stack() as stack:
        stack.worker_with_beat(concurrency=5)
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.fixture(scope="module")
def runs(stack: stacks.Stack) -> dict[str, stacks.Run]:
    """Runs of every kind, all submitted at once."""
    light = stack.deployment("none")

    def run(*steps: str, **values: Any) -> stacks.Run:
        return light_jobs.run(stack, light, *steps, **values)

    return {
        "completes": run(*light_jobs.COMPLETE),
        "exit code 137": run("RUNNING", "exit:137"),
        "ends after its end": run("RUNNING", "COMPLETED", "exit:3"),
        "waits to retry": run("RUNNING", "FAILED", "exit:0", empirical_policy=RETRY),
        "dies before its retry": run("RUNNING", "FAILED", "exit:3", empirical_policy=RETRY),
        "leaves": run("RUNNING", "exit:0"),
        "storage block": stack.run(in_storage_block(stack)),
        "retries": stack.run(stack.deployment("fails_once", file="parity_flows.py")),
        "module": stack.run(
            stack.deployment(
                "none",
                entrypoint="parity_flows.notes_directory",
                job_variables={"env": {"PYTHONPATH": str(stacks.FLOWS)}},
            )
        ),
        "pull steps": stack.run(
            stack.deployment(
                "notes_directory",
                file="parity_flows.py",
                path=None,
                pull_steps=[{STEP: {"directory": str(stacks.FLOWS)}}],
            )
        ),
    }


def in_storage_block(stack: stacks.Stack) -> schemas.Deployment:
    block = stack.objects.block({"basepath": str(stacks.FLOWS)})
    deployment = stack.deployment("completes", storage_document_id=str(block.id))
    assert deployment.storage_document_id == block.id
    return deployment


def test_exit_code_137_is_crashed_with_a_hint_at_memory(runs: dict[str, stacks.Run]) -> None:
    state = runs["exit code 137"].wait_for_end()

    assert state.type is State.CRASHED
    assert "137" in str(state.message)
    assert "out of memory" in str(state.message)


def test_a_job_that_dies_after_its_run_has_ended_changes_nothing(
    stack: stacks.Stack, runs: dict[str, stacks.Run]
) -> None:
    run = runs["ends after its end"]
    run.wait_for_end()

    stack.processes[0].wait_for_text(f"flow run {run.id} stays as it is")

    assert run.history()[-2:] == ["RUNNING", "COMPLETED"]


@pytest.mark.parametrize("name", ["waits to retry", "dies before its retry"])
def test_a_job_that_is_gone_before_its_own_retry_is_crashed(
    runs: dict[str, stacks.Run], name: str
) -> None:
    run = runs[name]

    state = run.wait_for_end()

    assert state.type is State.CRASHED
    assert run.states()[-2].name == "AwaitingRetry"


def test_a_job_that_leaves_its_run_running_is_crashed(runs: dict[str, stacks.Run]) -> None:
    state = runs["leaves"].wait_for_end()

    assert state.type is State.CRASHED
    assert "left the run Running" in str(state.message)


def test_retries_are_made_by_the_same_process(runs: dict[str, stacks.Run]) -> None:
    run = runs["retries"]

    assert run.wait_for_end().type is State.COMPLETED
    assert len(run.lines()) == 2
    assert len(set(run.lines())) == 1
    assert run.history().count("PENDING") == 1


@pytest.mark.parametrize("name", ["module", "pull steps"])
def test_flows_are_found_by_module_and_by_pull_steps(
    runs: dict[str, stacks.Run], name: str
) -> None:
    run = runs[name]

    assert run.wait_for_end().type is State.COMPLETED
    [line] = run.lines()
    assert (line == f"directory {stacks.FLOWS}") is (name == "pull steps")


def test_a_run_whose_code_is_in_a_storage_block_is_not_started_and_says_why(
    stack: stacks.Stack, runs: dict[str, stacks.Run]
) -> None:
    run = runs["storage block"]

    state = run.wait_for_end()

    assert run.history()[-2:] == ["PENDING", "CRASHED"]
    assert "could not be submitted" in str(state.message)
    assert "storage block" in str(state.message)
    assert run.read().infrastructure_pid is None
    assert not run.lines()


def test_a_run_is_labelled_with_its_worker_and_its_pool(
    stack: stacks.Stack, runs: dict[str, stacks.Run]
) -> None:
    pool = stack.objects.client.read_work_pool(stack.pool)
    runs["completes"].wait_for_end()

    labels = runs["completes"].read().labels

    assert labels["prefect.worker.name"] == "celery-flow-dispatcher"
    assert labels["prefect.worker.type"] == "process"
    assert labels["prefect.work-pool.name"] == stack.pool
    assert labels["prefect.work-pool.id"] == str(pool.id)
