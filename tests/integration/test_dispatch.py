"""One worker with an embedded beat serves its pools: how runs begin and how they end."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects
from executors import process
from tests import stack as stacks
from tests import waiting
from tests.conftest import NewStack

State = schemas.StateType

AHEAD_SECONDS = 8.0  # less than the default prefetch
EARLY_SECONDS = 0.5  # the server rounds the time that an engine has to wait to whole seconds
NO_SUCH_BLOCK = "{{ prefect.blocks.string.no-such-block }}"


@pytest.fixture(scope="module")
def stack(
    new_stack: NewStack, server_objects: prefect_objects.PrefectObjects
) -> Iterator[stacks.Stack]:
    """Serves three pools: one that does not exist yet, one without a template, one paused."""
    empty = server_objects.pool(base_job_template={}).name
    paused = server_objects.pool(is_paused=True).name
    with new_stack(prefect_objects.new_name("pool"), empty, paused) as stack:
        stack.worker_with_beat(concurrency=4)
        for pool in stack.pools:
            stack.wait_until_served(pool)
        yield stack


@pytest.fixture(scope="module")
def runs(stack: stacks.Stack) -> dict[str, stacks.Run]:
    """Runs of every kind, all submitted at once but for one that is not due yet."""
    notes = stack.deployment("notes", file="dispatch_flows.py")
    early = stack.run(notes, due=datetime.now(UTC) + timedelta(seconds=AHEAD_SECONDS))
    # Before the others take all the slots.
    early.wait_for_state(State.PENDING, State.RUNNING)
    gate = str(stack.directory / "gate")
    return {
        "early": early,
        "waits": stack.run(
            stack.deployment("waits_for_file", file="dispatch_flows.py"), {"file": gate}
        ),
        "no command": stack.run(
            stack.deployment("notes", job_variables={"command": "no-such-command"})
        ),
        "no block": stack.run(
            stack.deployment(
                "notes",
                job_variables={"env": {"SECRET": NO_SUCH_BLOCK}},
            )
        ),
        "raises": stack.run(stack.deployment("raises")),
        "exits": stack.run(stack.deployment("exits")),
        "kills itself": stack.run(stack.deployment("kills_itself")),
        "no file": stack.run(stack.deployment("notes", file="no_such_file.py")),
        "no template": stack.run(
            stack.deployment("notes", file="dispatch_flows.py", pool=stack.pools[1])
        ),
        "completes": stack.run(stack.deployment("completes")),
        "paused": stack.run(
            stack.deployment("notes", file="dispatch_flows.py", pool=stack.pools[2])
        ),
    }


def test_a_missing_pool_is_created_with_type_and_template_and_shows_as_served(
    stack: stacks.Stack,
) -> None:
    pool = stack.objects.client.read_work_pool(stack.pool)

    worker = stack.wait_until_served(stack.pool)

    assert (pool.type, pool.status) == ("process", "READY")
    assert pool.base_job_template == process.ProcessExecutor.get_default_base_job_template()
    assert (worker.name, worker.heartbeat_interval_seconds) == ("celery-flow-dispatcher", 5)


def test_a_pool_without_a_template_gets_the_default_one_and_its_runs_complete(
    stack: stacks.Stack, runs: dict[str, stacks.Run]
) -> None:
    state = runs["no template"].wait_for_end()

    assert state.type is State.COMPLETED
    pool = stack.objects.client.read_work_pool(stack.pools[1])
    assert pool.base_job_template == process.ProcessExecutor.get_default_base_job_template()


def test_a_paused_pool_stays_paused_until_it_is_resumed_and_then_its_runs_start(
    stack: stacks.Stack, runs: dict[str, stacks.Run]
) -> None:
    runs["no template"].wait_for_end()  # created before and served by the same polls
    paused = stack.objects.client.read_work_pool(stack.pools[2])
    before = runs["paused"].history()

    stack.objects.change_pool(stack.pools[2], is_paused=False)

    assert paused.status == "PAUSED"
    assert before in (["SCHEDULED"], ["SCHEDULED", "SCHEDULED"])  # the second one is Late
    assert runs["paused"].wait_for_end().type is State.COMPLETED


def test_a_flow_completes_after_one_pending_and_one_running(runs: dict[str, stacks.Run]) -> None:
    run = runs["completes"]

    state = run.wait_for_end()

    assert state.type is State.COMPLETED
    assert run.history()[-3:] == ["PENDING", "RUNNING", "COMPLETED"]
    assert run.read().infrastructure_pid is not None
    assert len(run.lines()) == 1


def test_a_flow_that_raises_is_failed_and_not_crashed(runs: dict[str, stacks.Run]) -> None:
    run = runs["raises"]

    state = run.wait_for_end()

    assert state.type is State.FAILED
    assert "CRASHED" not in run.history()


@pytest.mark.parametrize(("name", "code"), [("exits", "code 3"), ("kills itself", "code -9")])
def test_a_job_that_dies_is_crashed_with_its_exit_code(
    runs: dict[str, stacks.Run], name: str, code: str
) -> None:
    run = runs[name]

    state = run.wait_for_end()

    assert run.history()[-3:] == ["PENDING", "RUNNING", "CRASHED"]
    assert code in str(state.message)


def test_a_flow_whose_file_is_missing_is_crashed_from_pending(runs: dict[str, stacks.Run]) -> None:
    run = runs["no file"]

    state = run.wait_for_end()

    assert run.history()[-2:] == ["PENDING", "CRASHED"]
    assert "code 1" in str(state.message)


@pytest.mark.parametrize(
    ("name", "words"), [("no command", "no-such-command"), ("no block", "no-such-block")]
)
def test_a_job_that_cannot_be_started_is_crashed_naming_the_cause_and_harms_no_other(
    stack: stacks.Stack, runs: dict[str, stacks.Run], name: str, words: str
) -> None:
    run = runs[name]

    state = run.wait_for_end()

    assert run.history()[-2:] == ["PENDING", "CRASHED"]
    assert words in str(state.message)
    assert runs["completes"].wait_for_end().type is State.COMPLETED
    assert stack.processes[0].is_running


def test_a_run_within_the_prefetch_is_claimed_early_and_not_running_before_its_time(
    runs: dict[str, stacks.Run],
) -> None:
    run = runs["early"]
    assert run.flow_run.expected_start_time is not None
    due = run.flow_run.expected_start_time.timestamp()

    state = run.wait_for_end()

    assert state.type is State.COMPLETED
    assert run.entered(State.PENDING) < due - EARLY_SECONDS <= run.entered(State.RUNNING)


def test_a_message_that_is_delivered_twice_is_refused_and_writes_nothing(
    stack: stacks.Stack, runs: dict[str, stacks.Run]
) -> None:
    run = runs["waits"]
    worker = stack.processes[0]
    run.wait_for_line("running")

    stack.redeliver(run)
    worker.wait_for_text(f"{run.id}: delivery refused, its claim is held")
    during = run.history()
    Path(run.flow_run.parameters["file"]).touch()
    run.wait_for_end()
    waiting.wait_for(
        lambda: run.id not in stack.ledger.open_run_ids(), seconds=10, what="the claim is closed"
    )
    stack.redeliver(run)
    worker.wait_for_text(f"{run.id}: delivery refused, its claim is closed")

    assert during[-2:] == ["PENDING", "RUNNING"]
    assert run.history()[-3:] == ["PENDING", "RUNNING", "COMPLETED"]
    assert [line.split()[0] for line in run.lines()] == ["running", "executed"]
