"""What holds on one plain Redis holds on other brokers, and in a namespace of its own."""

from __future__ import annotations

import contextlib
import functools
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import psutil
import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import light_jobs, rabbitmq_server, redis_topologies, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

GRACE_SECONDS = 2.0
SECONDS = 60.0
SETTINGS = {
    "DISPATCHER_CANCEL_INTERVAL": "0.5",
    "DISPATCHER_GRACE_SECONDS": str(GRACE_SECONDS),
    "DISPATCHER_LEASE_SECONDS": "5",
    "DISPATCHER_RECOVER_INTERVAL": "1",
}


T = TypeVar("T")


@contextlib.contextmanager
def started(make: Callable[[Path], contextlib.AbstractContextManager[T]]) -> Iterator[T]:
    """Servers of Redis in a directory of their own, skipped by name where they are missing."""
    if reason := redis_topologies.missing():
        pytest.skip(reason)
    # Not pytest's own directory, whose path may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="redis-") as path, make(Path(path) / "own") as servers:
        yield servers


@pytest.fixture(scope="module")
def watched() -> Iterator[redis_topologies.Watched]:
    with started(redis_topologies.Watched) as servers:
        yield servers


@pytest.fixture(scope="module")
def guarded() -> Iterator[str]:
    with started(redis_topologies.guarded) as url:
        yield url


@pytest.fixture(scope="module")
def cluster() -> Iterator[redis_topologies.Cluster]:
    with started(redis_topologies.Cluster) as nodes:
        yield nodes


def on_rabbitmq(request: pytest.FixtureRequest) -> dict[str, str]:
    broker: rabbitmq_server.RabbitMQServer = request.getfixturevalue("rabbitmq")
    return {"DISPATCHER_BROKER_URL": broker.new_url()}


@pytest.fixture(
    scope="module", params=["rabbitmq", "namespace", "sentinel", "tls-and-acl", "cluster"]
)
def stack(new_stack: NewStack, request: pytest.FixtureRequest) -> Iterator[stacks.Stack]:
    if request.param == "rabbitmq":
        settings = on_rabbitmq(request)
    elif request.param == "namespace":
        settings = {"DISPATCHER_NAMESPACE": "team-a"}
    elif request.param == "sentinel":
        servers: redis_topologies.Watched = request.getfixturevalue("watched")
        settings = {"redis_url": servers.url}
    elif request.param == "cluster":
        nodes: redis_topologies.Cluster = request.getfixturevalue("cluster")
        settings = {"redis_url": nodes.url, **on_rabbitmq(request)}
    else:
        settings = {"redis_url": request.getfixturevalue("guarded")}
    with new_stack(**SETTINGS, **settings) as stack:
        stack.control_worker()
        stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", "4")
        stack.wait_until_served(stack.pool)
        yield stack


@pytest.fixture(scope="module")
def deployment(stack: stacks.Stack) -> schemas.Deployment:
    return stack.deployment("none")


def hold(stack: stacks.Stack, deployment: schemas.Deployment, gate: str) -> stacks.Run:
    """A run that has begun, and ends when its gate is opened."""
    path = stack.directory / gate
    run = light_jobs.run(stack, deployment, "RUNNING", "note", f"wait:{path}", "COMPLETED")
    light_jobs.wait_until_seen(run)
    return run


def family(worker: stacks.CeleryProcess) -> list[psutil.Process]:
    main = psutil.Process(worker.pid)
    return [main, *main.children()]


def test_runs_end_as_their_jobs_do_and_are_executed_once(
    stack: stacks.Stack, deployment: schemas.Deployment
) -> None:
    well = [light_jobs.run(stack, deployment, *light_jobs.COMPLETE) for _ in range(12)]
    failing = light_jobs.run(stack, deployment, "RUNNING", "note", "FAILED")
    dying = light_jobs.run(stack, deployment, "RUNNING", "note", "exit:3")
    assert {run.wait_for_end(seconds=SECONDS).type for run in well} == {State.COMPLETED}
    assert failing.wait_for_end().type is State.FAILED
    assert dying.wait_for_end().type is State.CRASHED
    for run in (*well, failing, dying):
        assert Counter(run.history())["PENDING"] == 1
        assert len(light_jobs.seen(run)) == 1


def test_a_message_that_is_delivered_twice_starts_nothing(
    stack: stacks.Stack, deployment: schemas.Deployment
) -> None:
    run = hold(stack, deployment, "twice")
    stack.redeliver(run)
    waiting.wait_for(
        lambda: any("delivery refused" in each.text() for each in stack.processes),
        seconds=SECONDS,
        what="it is refused",
    )
    (stack.directory / "twice").touch()
    assert run.wait_for_end().type is State.COMPLETED
    assert len(light_jobs.seen(run)) == 1


def test_running_and_stubborn_runs_are_cancelled(
    stack: stacks.Stack, deployment: schemas.Deployment
) -> None:
    running = hold(stack, deployment, "never")
    stubborn = stack.run(stack.deployment("ignores_everything"))
    stubborn.wait_for_line("")
    pid = light_jobs.pid_of(running)
    for run in (running, stubborn):
        run.cancel()
    for run in (running, stubborn):
        assert run.wait_for_end(seconds=GRACE_SECONDS + 15).type is State.CANCELLED
    assert not stacks.is_alive(pid)


def test_a_run_whose_worker_does_not_answer_is_cancelled_and_never_starts(
    stack: stacks.Stack, deployment: schemas.Deployment
) -> None:
    frozen = family(stack.processes[1])
    for process in frozen:
        process.suspend()
    run = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
    run.wait_for_state(State.PENDING)
    run.cancel()
    assert run.wait_for_end().type is State.CANCELLED
    for process in frozen:
        process.resume()
    # Its message comes before that of the next one.
    after = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
    assert after.wait_for_end(seconds=SECONDS).type is State.COMPLETED
    assert light_jobs.seen(run) == []


def test_runs_of_a_killed_worker_are_crashed_or_started_elsewhere(
    stack: stacks.Stack, deployment: schemas.Deployment
) -> None:
    # Nobody else may take what is meant to be lost.
    stack.celery.control.cancel_consumer(
        tasks.RUNS_QUEUE, destination=[stack.node("runs")], reply=True, limit=1, timeout=10
    )
    lost = stack.worker("lost", "-Q", tasks.RUNS_QUEUE, "-c", "2", "-P", "threads")
    begun = hold(stack, deployment, "lost")
    lost.send_signal(signal.SIGKILL)
    lost.wait()
    waiting_run = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
    assert begun.wait_for_end(seconds=SECONDS).type is State.CRASHED
    stack.celery.control.add_consumer(
        tasks.RUNS_QUEUE, destination=[stack.node("runs")], reply=True, limit=1, timeout=10
    )
    assert waiting_run.wait_for_end(seconds=SECONDS).type is State.COMPLETED
    assert len(light_jobs.seen(waiting_run)) == 1


def test_a_worker_that_is_told_to_stop_finishes_its_runs(
    stack: stacks.Stack, deployment: schemas.Deployment
) -> None:
    leaving = stack.worker("leaving", "-Q", tasks.RUNS_QUEUE, "-c", "1")
    gates = [f"leaving-{number}" for number in range(5)]
    runs = [hold(stack, deployment, gate) for gate in gates]
    leaving.send_signal(signal.SIGTERM)
    waiting.wait_for(
        lambda: "Warm shutdown" in leaving.text(), seconds=SECONDS, what="it is told to stop"
    )
    for gate in gates:
        (stack.directory / gate).touch()
    assert {run.wait_for_end().type for run in runs} == {State.COMPLETED}
    assert leaving.wait() == 0
    executed = [light_jobs.seen(run)[-1]["environ"]["EXECUTED_BY"] for run in runs]
    assert Counter(executed) == {"runs": 4, "leaving": 1}


def survive(stack: stacks.Stack, begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Have runs under way and due while something is struck; each ends well, executed once."""
    stack.control_worker()
    stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", "3")
    stack.wait_until_served(stack.pool)
    deployment = stack.deployment("none")
    held = [hold(stack, deployment, "struck") for _ in range(2)]
    begin()
    due = [light_jobs.run(stack, deployment, *light_jobs.COMPLETE) for _ in range(6)]
    end()
    (stack.directory / "struck").touch()
    ends = [run.wait_for_end(seconds=2 * SECONDS).type for run in (*held, *due)]
    assert set(ends) == {State.COMPLETED}
    assert {len(light_jobs.seen(run)) for run in (*held, *due)} == {1}


def test_a_broker_that_is_started_again_loses_and_doubles_nothing(
    rabbitmq: rabbitmq_server.RabbitMQServer, new_stack: NewStack
) -> None:
    with new_stack(**SETTINGS, DISPATCHER_BROKER_URL=rabbitmq.new_url()) as stack:
        survive(stack, rabbitmq.stop, rabbitmq.start)
        said = "".join(process.text() for process in stack.processes)
        assert "Unrecoverable" not in said
        assert "delayed delivery" not in said


def test_a_failover_under_running_flows_loses_and_doubles_nothing(
    watched: redis_topologies.Watched, new_stack: NewStack
) -> None:
    with new_stack(**SETTINGS, redis_url=watched.url) as stack:
        survive(stack, watched.kill_primary, lambda: None)


def test_a_failover_by_tls_loses_and_doubles_nothing(new_stack: NewStack) -> None:
    with (
        started(functools.partial(redis_topologies.Watched, tls=True)) as watched,
        new_stack(**SETTINGS, redis_url=watched.url) as stack,
    ):
        survive(stack, watched.kill_primary, lambda: None)


def test_a_ledger_that_moves_and_fails_over_in_a_cluster_loses_and_doubles_nothing(
    request: pytest.FixtureRequest, new_stack: NewStack
) -> None:
    settings = {**SETTINGS, **on_rabbitmq(request)}
    with (
        started(redis_topologies.Cluster) as cluster,
        new_stack(**settings, redis_url=cluster.url) as stack,
    ):
        survive(stack, cluster.kill_primary, cluster.move_slot)
