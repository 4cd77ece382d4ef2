"""What a real Flower shows of a real fleet's flow runs."""

from __future__ import annotations

import json
import socket
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.celery_app import tasks
from dispatcher.ledger import fleet
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

SHOWN_SECONDS = 40.0
ENDLESS = ("RUNNING", "note", "wait:/no/such")


class Flower:
    """A Flower of a stack, asked over HTTP."""

    def __init__(self, stack: stacks.Stack) -> None:
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = chosen.getsockname()[1]
        environment = {**stack.environment, "FLOWER_UNAUTHENTICATED_API": "true"}
        arguments = ["flower", "--address=127.0.0.1", f"--port={port}"]
        self.process = stacks.CeleryProcess("flower", arguments, environment, stack.directory)
        stack.processes.append(self.process)
        self.url = f"http://127.0.0.1:{port}"
        waiting.wait_for(self._answers, seconds=30, what="Flower answers")

    def get(self, path: str) -> str:
        """The text of an answer."""
        with urllib.request.urlopen(f"{self.url}{path}", timeout=10) as answer:
            return str(answer.read().decode())

    def wait_for(self, run: stacks.Run, state: str) -> dict[str, Any]:
        """Wait until a task of a run is in a state; what Flower shows of it."""

        def shown() -> list[dict[str, Any]]:
            known: dict[str, dict[str, Any]] = json.loads(self.get("/api/tasks?limit=1000"))
            of_run = [task for task in known.values() if run.flow_run.name in str(task["args"])]
            return [task for task in of_run if task["state"] == state]

        waiting.wait_for(
            lambda: shown() != [],
            seconds=SHOWN_SECONDS,
            every=0.3,
            what=f"a task of flow run {run.flow_run.name} is {state}",
        )
        return shown()[0]

    def wait_until_known(self, node: str) -> None:
        """Wait until a worker has answered Flower's question who is there."""
        waiting.wait_for(
            lambda: node in self.get("/api/workers?refresh=1"),
            seconds=SHOWN_SECONDS,
            what=f"worker {node} answers",
        )

    def post(self, path: str) -> None:
        """Do what a button does."""
        request = urllib.request.Request(f"{self.url}{path}", data=b"", method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def _answers(self) -> bool:
        try:
            return bool(self.get("/healthcheck"))
        except OSError:
            return False


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    with new_stack(DISPATCHER_CANCEL_INTERVAL="1", DISPATCHER_GRACE_SECONDS="3") as stack:
        stack.worker_with_beat(concurrency=4)
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.fixture(scope="module")
def flower(stack: stacks.Stack) -> Flower:
    return Flower(stack)


def test_each_run_has_its_name_and_its_true_state(stack: stacks.Stack, flower: Flower) -> None:
    light = stack.deployment("none")
    flow = stack.objects.client.read_flow(light.flow_id).name
    completed = light_jobs.run(stack, light, *light_jobs.COMPLETE)
    crashed = light_jobs.run(stack, light, "RUNNING", "exit:3")
    cancelled = light_jobs.run(stack, light, *ENDLESS)
    failed = stack.run(stack.deployment("raises"))
    light_jobs.wait_until_seen(cancelled)
    cancelled.cancel()
    for run in (completed, crashed, cancelled, failed):
        run.wait_for_end()

    shown = flower.wait_for(completed, "SUCCESS")
    assert shown["name"] == f"{flow}/{light.name}"
    assert completed.flow_run.name in shown["args"]
    assert stack.pool in shown["args"]
    assert f"/runs/flow-run/{completed.id}" in shown["kwargs"]
    shown = flower.wait_for(crashed, "FAILURE")
    assert "exited with non-zero status code 3" in shown["exception"]
    flower.wait_for(cancelled, "REVOKED")
    shown = flower.wait_for(failed, "FAILURE")
    assert "as the test wants it" in shown["exception"]
    assert not shown["traceback"]


def test_a_run_that_is_put_back_or_suspended_is_to_come_again(
    stack: stacks.Stack, flower: Flower
) -> None:
    light = stack.deployment("none")
    suspended = stack.run(stack.deployment("suspends"))
    run = light_jobs.run(stack, light, "RUNNING", "SCHEDULED", "exit:0")
    shown = flower.wait_for(run, "RETRY")
    assert shown["exception"]
    run.cancel()
    suspended.wait_for_state(State.PAUSED)
    shown = flower.wait_for(suspended, "RETRY")
    assert "Suspended" in shown["exception"]


def test_the_metrics_have_labels_for_deployments_and_none_for_runs(
    stack: stacks.Stack, flower: Flower
) -> None:
    light = stack.deployment("none")
    runs = [light_jobs.run(stack, light, *light_jobs.COMPLETE) for _ in range(3)]
    for run in runs:
        run.wait_for_end()
        flower.wait_for(run, "SUCCESS")
    text = flower.get("/metrics")
    assert f'/{light.name}"' in text
    assert not any(str(run.id) in text or run.flow_run.name in text for run in runs)


def test_celery_names_runs_by_their_deployments_too(stack: stacks.Stack) -> None:
    light = stack.deployment("none")
    flow = stack.objects.client.read_flow(light.flow_id).name
    run = light_jobs.run(stack, light, *ENDLESS)
    light_jobs.wait_until_seen(run)
    answers = stack.celery.control.inspect().active() or {}
    active = [task for each in answers.values() for task in each]
    (task,) = [task for task in active if str(run.id) in str(task["args"])]
    assert task["name"] == f"{flow}/{light.name}"
    assert task["type"] == tasks.EXECUTE
    assert f"Task {flow}/{light.name}[" in stack.processes[0].text()
    run.cancel()
    run.wait_for_end()


def test_control_work_is_left_out(stack: stacks.Stack, flower: Flower) -> None:
    run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
    flower.wait_for(run, "SUCCESS")
    known: dict[str, dict[str, Any]] = json.loads(flower.get("/api/tasks?limit=1000"))
    names = {str(task["name"]) for task in known.values()}
    assert not [name for name in names if name.startswith("dispatcher.")]


# Buttons

# A real engine runs its hooks, and Flower and the server are not alone here.
HOOKS_SECONDS = 10.0
POOLS = {"processes": (), "threads": ("--pool", "threads")}


def task_of(stack: stacks.Stack, run: stacks.Run) -> str:
    claim = stack.ledger.get(run.id)
    assert claim is not None
    return str(claim.claim_id)


@pytest.fixture(scope="module", params=POOLS)
def full(new_stack: NewStack, request: pytest.FixtureRequest) -> Iterator[stacks.Stack]:
    """A fleet of one slot."""
    with new_stack(DISPATCHER_RECOVER_INTERVAL="60") as stack:
        stack.control_worker()
        stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", "1", *POOLS[request.param])
        stack.wait_until_served(stack.pool)
        yield stack


def test_revoke_and_terminate_cancel_runs_at_once(full: stacks.Stack) -> None:
    flower = Flower(full)
    deployment = full.deployment("none")
    for _ in range(5):
        running = light_jobs.run(full, deployment, *ENDLESS)
        pid = light_jobs.wait_until_seen(running)["pid"]
        # There is but one slot, and a worker that takes no message seems to have one more.
        gone = full.seem_to_have(slots=1)
        waits = light_jobs.run(full, deployment, *ENDLESS)
        waits.wait_for_state(State.PENDING)
        fleet.Fleet(full.redis).leave(gone.key)
        for run, button in ((waits, ""), (running, "?terminate=true")):
            flower.post(f"/api/task/revoke/{task_of(full, run)}{button}")
            assert run.wait_for_end().type is State.CANCELLED
        assert not stacks.is_alive(pid)
        assert light_jobs.seen(waits) == []


def test_a_terminated_flow_runs_its_hooks(full: stacks.Stack) -> None:
    run = full.run(full.deployment("waits"))
    run.wait_for_line("running")
    claim = task_of(full, run)
    full.celery.control.terminate(claim)
    assert run.wait_for_end(seconds=HOOKS_SECONDS).type is State.CANCELLED
    assert "on_cancellation" in run.lines()
    said = [str(state.message) for state in full.objects.states(run.id)]
    assert "Cancelled through Celery." in said
