"""A Prefect server that refuses requests, or whose answers are lost on the way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from dispatcher.prefect_api import schemas
from tests import faulty_proxy
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

REFUSED_SHARE = 0.25
SEED = 20240229


@pytest.fixture(scope="module")
def stack(new_stack: NewStack, proxy: faulty_proxy.FaultyProxy) -> Iterator[stacks.Stack]:
    """A dispatcher whose every request passes the proxy; its engines' do not."""
    with new_stack(api_url=proxy.api_url) as stack:
        stack.worker_with_beat(concurrency=4)
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.fixture(autouse=True)
def no_faults_afterwards(proxy: faulty_proxy.FaultyProxy) -> Iterator[None]:
    yield
    proxy.decide = faulty_proxy.no_faults


def assert_executed_once(run: stacks.Run) -> None:
    assert run.wait_for_end().type is State.COMPLETED
    history = Counter(run.history())
    assert (history["PENDING"], history["RUNNING"], history["COMPLETED"]) == (1, 1, 1)
    assert len(run.lines()) == 1


def test_runs_end_exactly_once_although_a_quarter_of_all_requests_is_refused(
    stack: stacks.Stack, proxy: faulty_proxy.FaultyProxy
) -> None:
    proxy.decide = faulty_proxy.refuse_share(REFUSED_SHARE, SEED)
    deployment = stack.deployment("notes", file="dispatch_flows.py")
    unstartable = stack.deployment("notes", job_variables={"command": "no-such-command"})

    runs = [stack.run(deployment) for _ in range(4)]
    crashed = stack.run(unstartable)

    for run in runs:
        assert_executed_once(run)
    assert crashed.wait_for_end().type is State.CRASHED
    assert proxy.faults.count(faulty_proxy.Fault.REFUSE) > len(runs)


def test_a_claim_whose_answer_is_lost_is_executed_once_and_not_orphaned(
    stack: stacks.Stack, proxy: faulty_proxy.FaultyProxy
) -> None:
    proxy.decide = faulty_proxy.drop_first_reply("/flow_runs/bulk_set_state")
    before = len(proxy.faults)
    deployment = stack.deployment("notes", file="dispatch_flows.py")

    runs = [stack.run(deployment) for _ in range(2)]

    for run in runs:
        assert_executed_once(run)
    assert proxy.faults[before:] == [faulty_proxy.Fault.DROP_REPLY]


def test_a_crash_whose_report_is_answered_to_nobody_is_reported_once(
    stack: stacks.Stack, proxy: faulty_proxy.FaultyProxy
) -> None:
    proxy.decide = faulty_proxy.drop_first_reply("/set_state")
    before = len(proxy.faults)
    deployment = stack.deployment("notes", job_variables={"command": "no-such-command"})

    run = stack.run(deployment)

    assert run.wait_for_end().type is State.CRASHED
    assert run.history()[-2:] == ["PENDING", "CRASHED"]
    assert proxy.faults[before:] == [faulty_proxy.Fault.DROP_REPLY]
