"""Runs are executed by workers of their pool and work queue, and every slot gets used."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import psutil

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects
from tests import dispatcher_command, light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

# Long enough for a slow machine; the next tick of a poll would come only after this.
POLL_INTERVAL = {"DISPATCHER_POLL_INTERVAL": "30"}
SOON = 10.0
# In each of two pools; with a hundred nothing else happens, but it takes minutes.
RUNS_OF_A_POOL = int(os.environ.get("ROUTED_RUNS", "30"))
COMPLETE = ("note", "COMPLETED")


def two_pools() -> tuple[str, str]:
    return prefect_objects.new_name("a"), prefect_objects.new_name("b")


def executed_by(stack: stacks.Stack, runs: Sequence[stacks.Run]) -> list[str]:
    """The workers whose processes have executed runs, by what the jobs have seen of themselves."""
    return [light_jobs.seen(run)[-1]["environ"]["EXECUTED_BY"] for run in runs]


def light_runs(
    stack: stacks.Stack, deployment: schemas.Deployment, number: int, *steps: str, **values: Any
) -> list[stacks.Run]:
    return [
        light_jobs.run(stack, deployment, *(steps or COMPLETE), **values) for _ in range(number)
    ]


def wait_for_ends(runs: Sequence[stacks.Run], *, seconds: float = 180.0) -> None:
    for run in runs:
        assert run.wait_for_end(seconds=seconds).type is State.COMPLETED


def hold(stack: stacks.Stack, gate: Path, deployment: schemas.Deployment) -> stacks.Run:
    """A run that ends when its gate is opened."""
    return light_jobs.run(stack, deployment, "RUNNING", "note", f"wait:{gate}", "COMPLETED")


def wait_until_polled(stack: stacks.Stack, pool: str) -> None:
    """Wait until a poll of a pool that begins after this call has ended."""
    asked = time.monotonic()

    def polled() -> bool:
        ages = {each["name"]: each["last_poll_seconds"] for each in status(stack)["pools"]}
        age = ages[pool]
        return age is not None and time.monotonic() - age > asked

    waiting.wait_for(polled, seconds=SOON, what="a poll")


def wait_until_running(*runs: stacks.Run, seconds: float = SOON) -> None:
    waiting.wait_for(
        lambda: all(light_jobs.seen(run) for run in runs), seconds=seconds, what="they execute"
    )


def status(stack: stacks.Stack) -> dict[str, Any]:
    """What the command says; its exit status tells whether there is a problem."""
    code, told = dispatcher_command.status(stack)
    found: dict[str, Any] = told
    assert code == (1 if found["problems"] else 0)
    return found


def test_many_runs_of_two_pools_are_executed_by_workers_of_their_pool_alone(
    new_stack: NewStack,
) -> None:
    with new_stack(*two_pools()) as stack:
        a, b = stack.pools
        stack.control_worker()
        stack.worker("only-a", "-P", "threads", "-c", "4", "-Q", tasks.RUNS_QUEUE, pools=[a])
        stack.worker("only-b", "-P", "threads", "-c", "4", "-Q", tasks.pool_queue(b))
        for pool in stack.pools:
            stack.wait_until_served(pool)
        of_a = light_runs(stack, stack.deployment("none", pool=a), RUNS_OF_A_POOL)
        of_b = light_runs(stack, stack.deployment("none", pool=b), RUNS_OF_A_POOL)
        wait_for_ends([*of_a, *of_b])
        assert Counter(executed_by(stack, of_a)) == {"only-a": RUNS_OF_A_POOL}
        assert Counter(executed_by(stack, of_b)) == {"only-b": RUNS_OF_A_POOL}
        assert {len(light_jobs.seen(run)) for run in (*of_a, *of_b)} == {1}
        found = status(stack)
        assert {pool["name"]: pool["workers"] for pool in found["pools"]} == {
            a: [stack.node("only-a")],
            b: [stack.node("only-b")],
        }
        assert [pool["slots"] for pool in found["pools"]] == [4, 4]
        assert found["problems"] == []


def test_workers_with_overlapping_pools_leave_no_slot_without_a_run_that_is_due(
    new_stack: NewStack,
) -> None:
    with new_stack(*two_pools(), **POLL_INTERVAL) as stack:
        a, b = stack.pools
        stack.control_worker()
        for name, pools, slots in (("both", [a, b], "1"), ("only-a", [a], "2")):
            stack.worker(name, "-P", "threads", "-c", slots, "-Q", tasks.RUNS_QUEUE, pools=pools)
        for pool in stack.pools:
            stack.wait_until_served(pool)
        gates = [stack.directory / f"gate-{number}" for number in range(4)]
        of_a, of_b = (stack.deployment("none", pool=pool) for pool in (a, b))
        # Those of one pool go where nobody else can go, and leave the slot that both can use.
        first, second = hold(stack, gates[0], of_a), hold(stack, gates[1], of_a)
        wait_until_running(first, second)
        assert executed_by(stack, [first, second]) == ["only-a", "only-a"]
        third = hold(stack, gates[2], of_b)
        wait_until_running(third)
        assert executed_by(stack, [third]) == ["both"]
        # A slot that the run of one pool leaves goes to the other pool, which has waited for it.
        fourth = hold(stack, gates[3], of_a)
        wait_until_polled(stack, a)
        assert fourth.state.type is State.SCHEDULED
        gates[2].touch()
        assert third.wait_for_end().type is State.COMPLETED
        wait_until_running(fourth)
        assert executed_by(stack, [fourth]) == ["both"]
        for gate in gates:
            gate.touch()
        wait_for_ends([first, second, fourth])


def test_a_run_does_not_wait_for_the_backlog_of_another_pool_on_the_same_worker(
    new_stack: NewStack,
) -> None:
    with new_stack(*two_pools(), **POLL_INTERVAL) as stack:
        a, b = stack.pools
        stack.control_worker()
        stack.worker("both", "-P", "threads", "-c", "1", "-Q", tasks.RUNS_QUEUE)
        for pool in stack.pools:
            stack.wait_until_served(pool)
        backlog = light_runs(stack, stack.deployment("none", pool=a), 12)
        waiting.wait_for(lambda: backlog[0].state.type is State.COMPLETED, seconds=SOON, what="one")
        [other] = light_runs(stack, stack.deployment("none", pool=b), 1)
        assert other.wait_for_end().type is State.COMPLETED
        assert backlog[-1].state.type is State.SCHEDULED
        wait_for_ends(backlog)


def test_a_worker_of_a_work_queue_executes_runs_of_that_queue_alone(new_stack: NewStack) -> None:
    with new_stack() as stack:
        stack.control_worker()
        environment = {"DISPATCHER_WORK_QUEUES": "gpu"}
        threads = ("-P", "threads", "-Q", tasks.RUNS_QUEUE)
        stack.wait_until_served(stack.pool)
        stack.objects.queue(stack.pool, "gpu")
        stack.worker("gpu", *threads, "-c", "3", settings=environment)
        plain = light_runs(stack, stack.deployment("none"), 4)
        on_gpu = stack.deployment("none", work_queue_name="gpu")
        special = light_runs(stack, on_gpu, 4)
        wait_for_ends(special)
        assert {run.state.type for run in plain} == {State.SCHEDULED}
        stack.worker("any", *threads, "-c", "2")
        wait_for_ends(plain)
        assert set(executed_by(stack, special)) == {"gpu"}
        assert set(executed_by(stack, plain)) == {"any"}


def test_a_run_takes_as_many_slots_as_it_asks_for_and_is_told_when_nobody_has_them(
    new_stack: NewStack,
) -> None:
    with new_stack() as stack:
        stack.control_worker()
        stack.worker("runs", "-P", "threads", "-c", "3", "-Q", tasks.RUNS_QUEUE)
        stack.wait_until_served(stack.pool)
        deployment = stack.deployment("none")
        gate = stack.directory / "gate"
        steps = ("RUNNING", "note", f"wait:{gate}", "COMPLETED")
        heavy = light_jobs.run(stack, deployment, *steps, job_variables={"slots": 2})
        wait_until_running(heavy)
        light = hold(stack, gate, deployment)
        wait_until_running(light)
        waits = hold(stack, gate, deployment)
        due = datetime.now(UTC) - timedelta(minutes=1)
        too_large = light_jobs.run(stack, deployment, job_variables={"slots": 9}, due=due)
        found = status(stack)
        assert (found["slots"], found["pools"][0]["free_slots"]) == ({"total": 3, "free": 0}, 0)
        assert waits.state.type is State.SCHEDULED
        gate.touch()
        wait_for_ends([heavy, light, waits])
        state = too_large.wait_for_end()
        assert state.type is State.CRASHED
        assert "asks for 9 slots" in str(state.message)
        assert "has 3" in str(state.message)


def test_runs_that_were_meant_for_a_killed_worker_go_to_one_that_serves_their_pool(
    new_stack: NewStack,
) -> None:
    with new_stack(*two_pools(), DISPATCHER_RECOVER_INTERVAL="1") as stack:
        a, b = stack.pools
        stack.control_worker()
        other = ("-P", "threads", "-c", "4", "-Q", tasks.RUNS_QUEUE)
        stack.worker("other", *other, pools=[b])
        lost = stack.worker("lost", "-c", "2", "-Q", tasks.RUNS_QUEUE, pools=[a])
        stack.wait_until_served(a)
        frozen = [psutil.Process(lost.pid), *psutil.Process(lost.pid).children(recursive=True)]
        for process in frozen:
            process.suspend()
        runs = light_runs(stack, stack.deployment("none", pool=a), 2)
        waiting.wait_for(
            lambda: (
                [claim.meant_for for claim in stack.ledger.open_claims()]
                == [stack.node("lost")] * 2
            ),
            seconds=SOON,
            what="both are meant for the worker that does not answer",
        )
        for process in frozen:
            process.kill()
        lost.wait()
        stack.worker("next", "-P", "threads", "-c", "2", "-Q", tasks.RUNS_QUEUE, pools=[a])
        wait_for_ends(runs, seconds=60)
        assert set(executed_by(stack, runs)) == {"next"}


def test_a_pool_with_due_runs_and_no_worker_is_a_problem_in_the_status(new_stack: NewStack) -> None:
    with new_stack(*two_pools()) as stack:
        a, b = stack.pools
        stack.control_worker()
        stack.worker("only-a", "-P", "threads", "-c", "1", "-Q", tasks.pool_queue(a))
        for pool in stack.pools:
            stack.wait_until_served(pool)
        due = datetime.now(UTC) - timedelta(minutes=1)
        light_jobs.run(stack, stack.deployment("none", pool=b), *COMPLETE, due=due)
        problem = f"Work pool {b!r} has due runs and no worker that serves it"
        waiting.wait_for(
            lambda: problem in status(stack)["problems"], seconds=60, what="the status says so"
        )
