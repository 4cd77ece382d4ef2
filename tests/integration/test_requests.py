"""How much the dispatcher asks of the Prefect API."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from dispatcher.api import schemas, transport
from tests import faulty_proxy, waiting
from tests import stack as stacks
from tests.conftest import NewStack

RUNS = 40
BATCH_SECONDS = 120.0
MOST_REQUESTS = 5.0  # for a run

# What is asked of the server about no run in particular: at intervals, or in batches.
NOT_FOR_A_RUN = (
    "/flow_runs/filter",
    "/get_scheduled_flow_runs",
    "/workers/heartbeat",
    "/logs/",
    "/events",
)

QUICK_ENGINE = shlex.join([sys.executable, "-I", "-S", str(stacks.FLOWS / "quick_engine.py")])


@pytest.fixture(scope="module")
def stack(new_stack: NewStack, proxy: faulty_proxy.FaultyProxy) -> Iterator[stacks.Stack]:
    """A dispatcher with the default intervals, whose jobs ask the server directly."""
    settings = {"DISPATCHER_POLL_INTERVAL": "5", "DISPATCHER_HEARTBEAT_INTERVAL": "30"}
    with new_stack(api_url=proxy.api_url, **settings) as stack:
        stack.worker_with_beat(concurrency=4)
        stack.wait_until_served(stack.pool)
        yield stack


def test_a_run_costs_at_most_five_requests(
    stack: stacks.Stack, proxy: faulty_proxy.FaultyProxy
) -> None:
    deployment = stack.deployment("notes", job_variables={"command": QUICK_ENGINE})
    stack.objects.change_pool(stack.pool, is_paused=True)
    runs = [stack.run(deployment) for _ in range(RUNS)]
    before = len(proxy.requests)

    stack.objects.change_pool(stack.pool, is_paused=False)
    wait_until_completed(stack, runs)

    requests = [
        request for request in proxy.requests[before:] if not request.path.endswith(NOT_FOR_A_RUN)
    ]
    assert {request.user_agent for request in requests} == {transport.USER_AGENT}
    assert len(requests) / RUNS <= MOST_REQUESTS, Counter(map(shape, requests))


def wait_until_completed(stack: stacks.Stack, runs: list[stacks.Run]) -> None:
    completed = schemas.FlowRunFilter(
        ids=[run.id for run in runs], state_types=[schemas.StateType.COMPLETED]
    )
    waiting.wait_for(
        lambda: len(stack.objects.client.read_flow_runs(completed)) == len(runs),
        seconds=BATCH_SECONDS,
        every=0.5,
        what=f"{len(runs)} runs complete",
    )


def shape(request: faulty_proxy.Request) -> str:
    """A request without the ids in it."""
    parts = ["{id}" if len(part) == 36 else part for part in request.path.split("/")]
    return f"{request.method} {'/'.join(parts)}"
