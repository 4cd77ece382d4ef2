"""Fork servers in real workers: one for all slots, on every kind of pool, gone with the worker."""

from __future__ import annotations

import signal
from pathlib import Path

import psutil
import pytest

from dispatcher.prefect_api import schemas
from executors.process.warm import fork_server_keeper
from tests import stack as stacks
from tests import waiting
from tests.conftest import NewStack

State = schemas.StateType

START_SECONDS = 60.0


def fork_servers(worker: stacks.CeleryProcess) -> list[psutil.Process]:
    """The children of a worker's main process that fork jobs."""
    children = psutil.Process(worker.pid).children()
    return [child for child in children if str(fork_server_keeper.PROGRAM) in child.cmdline()]


def wait_until_warm(worker: stacks.CeleryProcess) -> psutil.Process:
    """Wait for the worker's fork server to be ready."""

    def ready() -> psutil.Process | None:
        for server in fork_servers(worker):
            path = Path(server.cmdline()[3]).with_suffix(".ready")
            if path.exists() and path.read_text() == str(server.pid):
                return server
        return None

    found = waiting.wait_for(ready, seconds=START_SECONDS, what="the fork server is ready")
    assert found is not None
    return found


def process_of(run: stacks.Run) -> psutil.Process:
    return psutil.Process(int(run.wait_for_line("running").split()[1]))


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_all_slots_share_a_fork_server_and_end_with_their_worker(
    new_stack: NewStack, pool: str
) -> None:
    with new_stack(DISPATCHER_START="auto") as stack:
        schedule = str(stack.directory / "schedule")
        worker = stack.worker("worker", "-B", "-s", schedule, "-c", "4", "--pool", pool)
        stack.wait_until_served(stack.pool)
        server = wait_until_warm(worker)
        warm = [stack.run(stack.deployment("forks_away", file="warm_flows.py")) for _ in range(2)]
        cold = stack.run(stack.deployment("waits", job_variables={"start": "cold"}))
        jobs = [process_of(run) for run in warm]
        escapees = [int(run.wait_for_line("escapee").split()[1]) for run in warm]

        assert [job.ppid() for job in jobs] == [server.pid] * 2
        assert process_of(cold).ppid() != server.pid
        assert fork_servers(worker) == [server]

        worker.send_signal(signal.SIGKILL)
        pids = [server.pid, *(job.pid for job in jobs), *escapees, process_of(cold).pid]
        waiting.wait_for(
            lambda: not [pid for pid in pids if stacks.is_alive(pid)],
            seconds=stacks.VANISH_SECONDS,
            what="nothing outlives the worker",
        )


def test_a_solo_worker_has_a_fork_server_too_and_ends_it(new_stack: NewStack) -> None:
    with new_stack(DISPATCHER_START="warm") as stack:
        control = stack.worker("control", "-Q", "dispatcher.control", "-c", "2")
        stack.beat()
        worker = stack.worker("runs", "-Q", "dispatcher.runs", "--pool", "solo")
        stack.wait_until_served(stack.pool)
        server = wait_until_warm(worker)

        run = stack.run(stack.deployment("completes"))

        assert run.wait_for_end().type is State.COMPLETED
        assert fork_servers(worker) == [server]
        assert fork_servers(control) == []
        worker.stop()
        assert not stacks.is_alive(server.pid)


def test_without_warm_starts_what_a_job_leaves_behind_still_ends_with_the_worker(
    new_stack: NewStack,
) -> None:
    with new_stack(DISPATCHER_START="cold") as stack:
        worker = stack.worker_with_beat(concurrency=2)
        stack.wait_until_served(stack.pool)
        guard = wait_until_warm(worker)
        run = stack.run(stack.deployment("forks_away", file="warm_flows.py"))
        job = process_of(run)
        escapee = int(run.wait_for_line("escapee").split()[1])
        assert job.ppid() != guard.pid

        worker.send_signal(signal.SIGKILL)

        waiting.wait_for(
            lambda: not [p for p in (guard.pid, job.pid, escapee) if stacks.is_alive(p)],
            seconds=stacks.VANISH_SECONDS,
            what="nothing outlives the worker",
        )
