"""How much the dispatcher asks of the Prefect API."""

from __future__ import annotations

import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from dispatcher.prefect_api import schemas, transport
from tests import faulty_proxy, waiting
from tests import stack as stacks
from tests.conftest import NewStack

RUNS = 40
BATCH_SECONDS = 120.0
MOST_REQUESTS = 5.0  # for a run; four, and what each process reads for the first time

# What is asked of the server about no run in particular: at intervals, or in batches.
NOT_FOR_A_RUN = (
    "/flow_runs/filter",
    "/get_scheduled_flow_runs",
    "/queues/filter",
    "/workers/heartbeat",
    "/logs/",
    "/events",
    "/events/out",
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


def test_a_run_costs_at_most_five_requests_that_the_server_takes(
    stack: stacks.Stack, proxy: faulty_proxy.FaultyProxy
) -> None:
    deployment = stack.deployment("notes", job_variables={"command": QUICK_ENGINE})
    stack.objects.change_pool(stack.pool, is_paused=True)
    runs = [stack.run(deployment) for _ in range(RUNS)]
    before, turned_away_before = len(proxy.requests), len(proxy.turned_away)

    stack.objects.change_pool(stack.pool, is_paused=False)
    wait_until_completed(stack, runs)

    requests = for_runs(proxy.requests[before:])
    assert {request.user_agent for request in requests} == {transport.USER_AGENT}
    # A server on SQLite turns away what it is too busy for, as often as the machine is slow.
    taken = Counter(map(shape, requests))
    taken.subtract(map(shape, for_runs(proxy.turned_away[turned_away_before:])))
    assert taken.total() / RUNS <= MOST_REQUESTS, taken


def for_runs(requests: Iterable[faulty_proxy.Request]) -> list[faulty_proxy.Request]:
    """Those of the requests that are about one run."""
    return [request for request in requests if not request.path.endswith(NOT_FOR_A_RUN)]


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
