"""What a run's page says about its end, against what did happen; each case with real processes."""

from __future__ import annotations

import re
import signal
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field

import psutil
import pytest

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

CONTROL = ("-Q", tasks.CONTROL_QUEUE, "--concurrency", "2")
RUNS = ("-Q", tasks.RUNS_QUEUE, "--concurrency", "2")
SETTINGS = {
    "DISPATCHER_LEASE_SECONDS": "5",
    "DISPATCHER_RECOVER_INTERVAL": "1",
    "DISPATCHER_CANCEL_INTERVAL": "1",
    "DISPATCHER_POLL_INTERVAL": "1",
    "DISPATCHER_GRACE_SECONDS": "3",
}
LOST_SECONDS = 45.0
ENDLESS = ("RUNNING", "note", "wait:/no/such")
NO_PID = 2**22 - 1  # more than any system has processes


@dataclass
class Field:
    """A fleet whose workers for runs are replaced as they are lost."""

    stack: stacks.Stack
    workers: int = 0
    deployment: schemas.Deployment = field(init=False)

    def __post_init__(self) -> None:
        self.deployment = self.stack.deployment("none")

    def worker(self) -> stacks.CeleryProcess:
        self.workers += 1
        return self.stack.worker(f"runs-{self.workers}", *RUNS)

    @property
    def node(self) -> str:
        """Celery's name of the last worker."""
        return self.stack.node(f"runs-{self.workers}")

    def run(self, *steps: str, infra_retries: int | None = None) -> stacks.Run:
        variables = {} if infra_retries is None else {"infra_retries": infra_retries}
        return light_jobs.run(self.stack, self.deployment, *steps, job_variables=variables)


@pytest.fixture(scope="module")
def fleet(new_stack: NewStack) -> Iterator[Field]:
    with new_stack(**SETTINGS) as stack:
        stack.worker("control", *CONTROL)
        stack.beat()
        stack.wait_until_served(stack.pool)
        yield Field(stack)


def message(run: stacks.Run, *types: State, seconds: float = LOST_SECONDS) -> str:
    """What its page says once it is in such a state."""
    return str(run.wait_for_state(*types, seconds=seconds).message)


def kill_children(worker: stacks.CeleryProcess) -> None:
    """What the kernel does to a pool process that uses too much memory."""
    for child in psutil.Process(worker.pid).children():
        if "ForkPoolWorker" in " ".join(child.cmdline()) or child.children():
            child.kill()


def test_a_job_that_ends_by_itself(fleet: Field) -> None:
    worker = fleet.worker()
    failing = fleet.run("RUNNING", "exit:3")
    forgetful = fleet.run("RUNNING", "exit:0")
    assert message(failing, State.CRASHED) == (
        "Flow run infrastructure exited with non-zero status code 3."
    )
    assert message(forgetful, State.CRASHED) == (
        "Flow run infrastructure exited with status code 0 but left the run Running."
    )
    assert worker.stop() == 0


def test_a_run_that_loses_its_pool_process_or_its_worker(fleet: Field) -> None:
    worker = fleet.worker()
    node = fleet.node
    died, again = fleet.run(*ENDLESS), fleet.run(*ENDLESS, infra_retries=1)
    for run in (died, again):
        light_jobs.wait_until_seen(run)

    kill_children(worker)
    loss = f"Its process on worker {node} died."
    assert message(died, State.CRASHED) == loss
    waiting.wait_for(lambda: len(light_jobs.seen(again)) == 2, seconds=60, what="it begins again")
    assert f"{loss} It is started again." in messages(again)

    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert message(again, State.CRASHED) == (
        f"Its worker {node} was lost: it stopped renewing its lease on the run."
        " It was started 2 times."
    )


def messages(run: stacks.Run) -> list[str]:
    """All that its page has said."""
    return [str(state.message) for state in run.objects.states(run.id)]


def test_a_run_whose_worker_is_told_to_stop(fleet: Field) -> None:
    worker = fleet.worker()
    begun = fleet.run(*ENDLESS)
    not_begun = fleet.run("note", "wait:/no/such")
    for run in (begun, not_begun):
        light_jobs.wait_until_seen(run)
    worker.send_signal(signal.SIGQUIT)
    worker.wait()
    loss = "Its worker was told to stop and did not wait for it."
    assert message(begun, State.CRASHED) == loss
    not_begun.wait_for_state(State.SCHEDULED)
    assert f"{loss} It is started again." in messages(not_begun)
    not_begun.cancel()
    not_begun.wait_for_end()


def test_a_run_that_waited_to_be_retried_when_its_worker_was_lost(fleet: Field) -> None:
    worker = fleet.worker()
    node = fleet.node
    policy = {"retries": 1, "retry_delay": 600}
    steps = ("RUNNING", "FAILED", "note", "wait:/no/such")
    run = light_jobs.run(fleet.stack, fleet.deployment, *steps, empirical_policy=policy)
    light_jobs.wait_until_seen(run)
    assert run.state.name == "AwaitingRetry"
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    assert message(run, State.CRASHED) == (
        f"Its worker {node} was lost: it stopped renewing its lease on the run."
        " It was waiting to be retried."
    )


def test_a_run_that_no_worker_takes_over(fleet: Field) -> None:
    worker = fleet.worker()
    worker.send_signal(signal.SIGSTOP)
    run = fleet.run(*ENDLESS)
    run.wait_for_state(State.PENDING)
    said = message(run, State.SCHEDULED, seconds=60)
    assert said == "No worker took the run over in time. It is started again."
    run.cancel()
    run.wait_for_end()
    worker.send_signal(signal.SIGKILL)
    worker.wait()


def test_a_run_that_was_cancelled_too_late_to_stop_its_job(fleet: Field) -> None:
    worker = fleet.worker()
    gate = fleet.stack.directory / "gate"
    run = fleet.run("RUNNING", "note", f"wait:{gate}", "exit:0")
    light_jobs.wait_until_seen(run)
    control = fleet.stack.processes[0]
    control.send_signal(signal.SIGSTOP)
    run.cancel()
    gate.touch()
    said = message(run, State.CANCELLED)
    control.send_signal(signal.SIGCONT)
    assert said == (
        "Flow run was cancelled, but its job had ended by itself before it could be stopped"
        " (status code 0)."
    )
    assert worker.stop() == 0


def test_a_cancelled_run_that_loses_its_worker(fleet: Field) -> None:
    worker = fleet.worker()
    node = fleet.node
    run = fleet.run(*ENDLESS)
    light_jobs.wait_until_seen(run)
    for child in psutil.Process(worker.pid).children(recursive=True):
        child.suspend()
    worker.send_signal(signal.SIGSTOP)
    run.cancel()
    for child in psutil.Process(worker.pid).children(recursive=True):
        child.kill()
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    lost = f"Its worker {node} was lost: it stopped renewing its lease on the run."
    # Whoever looks first once the claim is given up, recovery or cancellation; both are true.
    gone = (
        re.escape("Flow run was cancelled; its job is gone: No process ") + r"\d+ of this flow run"
    )
    said = message(run, State.CANCELLED)
    assert said == f"Flow run was cancelled. {lost}" or re.match(gone, said)


def test_a_cancelled_run_that_has_nothing_to_stop(fleet: Field) -> None:
    objects = fleet.stack.objects
    without_pid, gone = fleet.stack.run(fleet.deployment), fleet.stack.run(fleet.deployment)
    for run in (without_pid, gone):
        objects.force(run.id, State.RUNNING)
    objects.client.update_infrastructure_pid(gone.id, f"{socket.gethostname()}:{NO_PID}")
    for run in (without_pid, gone):
        run.cancel()
    assert message(without_pid, State.CANCELLED) == (
        "Flow run was cancelled. It has no infrastructure pid, so nothing could be stopped."
    )
    assert message(gone, State.CANCELLED) == (
        f"Flow run was cancelled; its job is gone: No process {NO_PID} of this flow run exists on"
        " this host (any more)."
    )


def test_a_run_whose_deployment_is_deleted_before_it_begins(fleet: Field) -> None:
    worker = fleet.worker()
    worker.send_signal(signal.SIGSTOP)
    deployment = fleet.stack.deployment("none")
    run = light_jobs.run(fleet.stack, deployment, *ENDLESS)
    run.wait_for_state(State.PENDING)
    fleet.stack.objects.delete_deployment(deployment.id)
    worker.send_signal(signal.SIGCONT)
    assert message(run, State.CANCELLED) == (
        f"Deployment {deployment.id} no longer exists, so its flow run was cancelled."
    )
    assert worker.stop() == 0
