"""What the fleet holds stays its own, whatever a user does to queues and pools under it."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator

import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

GRACE_SECONDS = 3.0
CANCEL_SECONDS = GRACE_SECONDS + 5.0  # what is promised
LOST_SECONDS = 45.0
UNWANTED_SECONDS = 15.0
QUEUE = "q1"
ENDLESS = ("RUNNING", "note", "wait:/no/such")

Meddle = Callable[[stacks.Stack, schemas.Deployment], None]


@pytest.fixture
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    """A fleet that is bound to one work queue; the sync task would make its pool anew."""
    settings = {
        "DISPATCHER_CANCEL_INTERVAL": "1",
        "DISPATCHER_RECOVER_INTERVAL": "1",
        "DISPATCHER_LEASE_SECONDS": "5",
        "DISPATCHER_GRACE_SECONDS": str(GRACE_SECONDS),
        "DISPATCHER_WORK_QUEUES": QUEUE,
        "DISPATCHER_CREATE_POOL_IF_NOT_FOUND": "false",
    }
    with new_stack(**settings) as stack:
        stack.objects.pool(stack.pool)
        request(stack, "POST", "/work_pools/{pool}/queues", json={"name": QUEUE})
        schedule = str(stack.directory / "schedule")
        control = ("-Q", tasks.CONTROL_QUEUE, "-B", "-s", schedule, "--concurrency", "2")
        stack.worker("control", *control)
        stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "--concurrency", "2")
        stack.wait_until_served(stack.pool)
        yield stack


def request(
    stack: stacks.Stack, method: str, route: str, json: object = None, **others: str
) -> None:
    names = {"pool": stack.pool, "queue": QUEUE, **others}
    stack.objects.client.transport.request(method, route, names=names, json=json)


def delete_queue(stack: stacks.Stack, _deployment: schemas.Deployment) -> None:
    request(stack, "DELETE", "/work_pools/{pool}/queues/{queue}")


def delete_pool(stack: stacks.Stack, _deployment: schemas.Deployment) -> None:
    request(stack, "DELETE", "/work_pools/{pool}")


def rename_queue(stack: stacks.Stack, _deployment: schemas.Deployment) -> None:
    request(stack, "PATCH", "/work_pools/{pool}/queues/{queue}", json={"name": "other"})


def move_deployment(stack: stacks.Stack, deployment: schemas.Deployment) -> None:
    other = stack.objects.pool(f"{stack.pool}-other")
    values = {"work_pool_name": other.name, "work_queue_name": None}
    request(stack, "PATCH", "/deployments/{id}", json=values, id=str(deployment.id))


def delete_deployment(stack: stacks.Stack, deployment: schemas.Deployment) -> None:
    stack.objects.delete_deployment(deployment.id)


@pytest.mark.parametrize(
    "meddle", [delete_queue, delete_pool, rename_queue, move_deployment, delete_deployment]
)
def test_a_run_is_cancelled_although_its_queue_or_pool_is_not_what_it_was(
    stack: stacks.Stack, meddle: Meddle
) -> None:
    deployment = stack.deployment("none", work_queue_name=QUEUE)
    run = light_jobs.run(stack, deployment, *ENDLESS)
    pid = light_jobs.wait_until_seen(run)["pid"]

    meddle(stack, deployment)
    run.cancel()

    assert run.wait_for_end(seconds=CANCEL_SECONDS).type is State.CANCELLED
    assert "its job has been stopped" in str(run.state.message)
    waiting.wait_for(lambda: not stacks.is_alive(pid), seconds=1, what="its process is gone")


def test_a_run_is_stopped_whose_flow_is_deleted(stack: stacks.Stack) -> None:
    run = light_jobs.run(stack, stack.deployment("none", work_queue_name=QUEUE), *ENDLESS)
    pid = light_jobs.wait_until_seen(run)["pid"]
    flow = str(run.read().flow_id)
    stack.objects.client.transport.request("DELETE", "/flows/{flow}", names={"flow": flow})
    waiting.wait_for(
        lambda: not stacks.is_alive(pid), seconds=UNWANTED_SECONDS, what="its process is gone"
    )


@pytest.mark.parametrize("meddle", [delete_queue, delete_pool])
def test_runs_that_lose_queue_worker_and_claim_are_ended(
    stack: stacks.Stack, meddle: Meddle
) -> None:
    deployment = stack.deployment("none", work_queue_name=QUEUE)
    running, cancelled = (light_jobs.run(stack, deployment, *ENDLESS) for _ in range(2))
    pids = [light_jobs.wait_until_seen(run)["pid"] for run in (running, cancelled)]

    meddle(stack, deployment)
    _, runs = stack.processes
    runs.send_signal(signal.SIGKILL)
    runs.wait()
    cancelled.cancel()
    stack.redis.flushdb()

    assert running.wait_for_end(seconds=LOST_SECONDS).type is State.CRASHED
    assert "its worker and its claim were lost" in str(running.state.message)
    assert cancelled.wait_for_end(seconds=LOST_SECONDS).type is State.CANCELLED
    assert not any(map(stacks.is_alive, pids))
