"""Two beats, two workers with both queues, thirty runs: the dispatcher under load."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from dispatcher.prefect_api import schemas
from tests import stack as stacks
from tests import waiting
from tests.conftest import NewStack

State = schemas.StateType

RUNS = 30
BATCH_SECONDS = 240.0  # 3 CPU-seconds for each run


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    with new_stack() as stack:
        for name in ("one", "two"):
            stack.worker(name, "--concurrency", "3")
        for name in ("beat-one", "beat-two"):
            stack.beat(name)
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.fixture(scope="module")
def runs(stack: stacks.Stack) -> list[stacks.Run]:
    """The runs, all of them over."""
    deployment = stack.deployment("notes", file="dispatch_flows.py")
    runs = [stack.run(deployment) for _ in range(RUNS)]
    ids = [run.id for run in runs]

    def ended() -> bool:
        found = stack.objects.client.read_flow_runs(schemas.FlowRunFilter(ids=ids))
        return all(run.state is not None and run.state.is_terminal for run in found)

    waiting.wait_for(ended, seconds=BATCH_SECONDS, every=1.0, what=f"{RUNS} runs end")
    return runs


def test_every_run_is_claimed_and_executed_exactly_once(runs: list[stacks.Run]) -> None:
    for run in runs:
        history = Counter(run.history())
        assert (history["PENDING"], history["RUNNING"], history["COMPLETED"]) == (1, 1, 1)
        assert len(run.lines()) == 1


def test_both_workers_take_part(stack: stacks.Stack, runs: list[stacks.Run]) -> None:
    for worker in stack.processes[:2]:
        assert "dispatcher.execute" in worker.text()


def test_never_more_runs_are_claimed_than_there_are_slots(runs: list[stacks.Run]) -> None:
    slots = 4  # of six places, two are kept for control work
    claimed = [(run.entered(State.PENDING), run.entered(State.COMPLETED)) for run in runs]

    at_once = [sum(start <= moment < end for start, end in claimed) for moment, _ in claimed]

    assert max(at_once) <= slots


def test_no_claim_and_no_working_directory_is_left(
    stack: stacks.Stack, runs: list[stacks.Run]
) -> None:
    waiting.wait_for(
        lambda: not stack.ledger.open_run_ids(), seconds=10, what="every claim is closed"
    )
    assert not list(stack.directory.glob("flow-run-*"))
