"""Workers that are stopped, in a hurry or not, or killed, and what becomes of their runs."""

from __future__ import annotations

import signal

import pytest

from dispatcher import errors
from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

OFFLINE_SECONDS = 60.0  # three heartbeats, and a server looks every 15 s
EXIT_SECONDS = 60.0
GONE_SECONDS = 15.0
QUICK_RECOVERY = {
    "DISPATCHER_LEASE_SECONDS": "3",
    "DISPATCHER_RECOVER_INTERVAL": "1",
    "DISPATCHER_HEARTBEAT_INTERVAL": "1",
}


def start(stack: stacks.Stack, pool: str = "prefork") -> stacks.CeleryProcess:
    """A worker with a beat, always under the same name."""
    schedule = str(stack.directory / f"schedule-{len(stack.processes)}")
    options = ("--concurrency", "4", "--pool", pool)
    worker = stack.worker("worker", "-B", "-s", schedule, *options)
    stack.wait_until_served(stack.pool)
    return worker


def test_runs_of_a_killed_worker_are_crashed_or_started_again_once_it_is_back(
    new_stack: NewStack,
) -> None:
    with new_stack(**QUICK_RECOVERY) as stack:
        killed = start(stack)
        deployment = stack.deployment("none")
        gate = stack.directory / "gate"
        begun = light_jobs.run(stack, deployment, "RUNNING", "note", "wait:/no/such")
        not_begun = light_jobs.run(
            stack, deployment, "note", f"wait:{gate}", "RUNNING", "COMPLETED"
        )
        pids = [light_jobs.wait_until_seen(run)["pid"] for run in (begun, not_begun)]

        killed.send_signal(signal.SIGKILL)
        killed.wait()
        waiting.wait_for(
            lambda: not any(stacks.is_alive(pid) for pid in pids),
            seconds=GONE_SECONDS,
            what="the jobs die with their worker",
        )
        gate.touch()
        start(stack)

        assert begun.wait_for_end().type is State.CRASHED
        assert stack.node("worker") in str(begun.state.message)
        assert not_begun.wait_for_end().type is State.COMPLETED
        assert [not_begun.history().count(state) for state in ("PENDING", "RUNNING")] == [2, 1]
        assert len(light_jobs.seen(not_begun)) == 2


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_sigterm_lets_runs_end_and_sigquit_does_not_and_the_pool_shows_that_nobody_is_left(
    new_stack: NewStack, pool: str
) -> None:
    with new_stack(**QUICK_RECOVERY) as stack:
        worker = start(stack, pool)
        deployment = stack.deployment("none")
        gate = stack.directory / "gate"
        patient = light_jobs.run(stack, deployment, "RUNNING", "note", f"wait:{gate}", "COMPLETED")
        endless = light_jobs.run(stack, deployment, "RUNNING", "note", "wait:/no/such")
        for run in (patient, endless):
            light_jobs.wait_until_seen(run)

        worker.send_signal(signal.SIGTERM)
        worker.wait_for_text("Warm shutdown")
        worker.send_signal(signal.SIGTERM)
        gate.touch()
        completed = patient.wait_for_end()
        still_running = worker.is_running
        worker.send_signal(signal.SIGQUIT)
        worker.wait(EXIT_SECONDS)

        assert completed.type is State.COMPLETED
        assert still_running
        assert endless.state.type is State.CRASHED
        assert "told to stop" in str(endless.state.message)
        assert not stacks.is_alive(light_jobs.seen(endless)[0]["pid"])
        waiting.wait_for(
            lambda: is_offline(stack), seconds=OFFLINE_SECONDS, every=0.5, what="it is offline"
        )


def is_offline(stack: stacks.Stack) -> bool:
    try:
        [worker] = stack.objects.client.read_workers(stack.pool)
        pool = stack.objects.client.read_work_pool(stack.pool)
    except errors.ApiUnreachable:
        return False
    return (worker.status, pool.status) == ("OFFLINE", "NOT_READY")


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_cancel_that_has_reached_nobody_yet_counts_when_the_worker_stops_in_a_hurry(
    new_stack: NewStack, pool: str
) -> None:
    with new_stack() as stack:
        schedule = str(stack.directory / "schedule")
        control = stack.worker("control", "-B", "-s", schedule, "-Q", tasks.CONTROL_QUEUE)
        options = ("--concurrency", "1", "--pool", pool)
        worker = stack.worker("runs", "-Q", tasks.RUNS_QUEUE, *options)
        stack.wait_until_served(stack.pool)
        run = stack.run(stack.deployment("waits"))
        run.wait_for_line("running")
        control.send_signal(signal.SIGKILL)
        control.wait()

        run.cancel()
        worker.send_signal(signal.SIGQUIT)

        assert run.wait_for_end().name == "Cancelled"
        assert "CRASHED" not in run.history()
        worker.wait(seconds=EXIT_SECONDS)
