"""Killing by pid what another process has started."""

from __future__ import annotations

import os
import signal
import subprocess
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from executors import errors
from executors.process import launch
from executors.process.cleanup import escaped_processes
from tests import waiting

SECONDS = 20.0
RUN_ID = str(uuid.uuid4())

Start = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts processes with just the given environment in a session of their own."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(script: str, *, session: bool = True, **env: str) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"], **env}
        started.append(
            subprocess.Popen(["sh", "-c", script], env=environment, start_new_session=session)
        )
        if script.startswith("exec "):
            # In the middle of exec a process shows no environment at all.
            program, pid = script.split()[1], started[-1].pid
            waiting.wait_for(
                lambda: psutil.Process(pid).name() == program, seconds=SECONDS, what="exec is over"
            )
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def is_alive(pid: str | int) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def written(report: Path) -> str:
    """Wait for a job to have written a line."""
    waiting.wait_for(
        lambda: report.exists() and "\n" in report.read_text(), seconds=SECONDS, what="a report"
    )
    return report.read_text().strip()


@pytest.mark.parametrize(
    "variable", [escaped_processes.FLOW_RUN_ID_VARIABLE, launch.JOB_ID_VARIABLE]
)
def test_a_job_is_killed_by_its_pid(start: Start, variable: str) -> None:
    job = start("exec sleep 300", **{variable: RUN_ID})

    escaped_processes.kill(job.pid, None, 0)

    assert job.wait(SECONDS) == -signal.SIGKILL


@pytest.mark.parametrize(
    "spelling",
    [RUN_ID, RUN_ID.replace("-", ""), RUN_ID.upper()],
    ids=["with dashes", "without", "in capitals"],
)
def test_the_flow_runs_id_may_be_written_either_way(start: Start, spelling: str) -> None:
    job = start("exec sleep 300", PREFECT__FLOW_RUN_ID=spelling)

    escaped_processes.kill(job.pid, RUN_ID, 0)

    assert job.wait(SECONDS) == -signal.SIGKILL


def test_a_process_of_no_flow_run_is_left_alone(start: Start) -> None:
    stranger = start("exec sleep 300")

    with pytest.raises(errors.InfrastructureNotFound):
        escaped_processes.kill(stranger.pid, None, 0)

    assert is_alive(stranger.pid)


def test_a_process_of_another_flow_run_is_left_alone(start: Start) -> None:
    other = start("exec sleep 300", PREFECT__FLOW_RUN_ID=str(uuid.uuid4()))

    with pytest.raises(errors.InfrastructureNotFound):
        escaped_processes.kill(other.pid, RUN_ID, 0)

    assert is_alive(other.pid)


def test_this_very_process_is_left_alone() -> None:
    with pytest.raises(errors.InfrastructureNotFound):
        escaped_processes.kill(os.getpid(), None, 0)


def test_a_pid_that_nobody_has_is_not_found(start: Start) -> None:
    job = start("exit 0", PREFECT__FLOW_RUN_ID=RUN_ID)
    job.wait(SECONDS)

    with pytest.raises(errors.InfrastructureNotFound, match=str(job.pid)):
        escaped_processes.kill(job.pid, RUN_ID, 0)


def test_the_group_of_a_job_without_a_session_of_its_own_is_left_alone(start: Start) -> None:
    bystander = start("exec sleep 300", session=False, PREFECT__FLOW_RUN_ID=RUN_ID)
    job = start("exec sleep 300", session=False, PREFECT__FLOW_RUN_ID=RUN_ID)

    escaped_processes.kill(job.pid, RUN_ID, 0)

    assert job.wait(SECONDS) == -signal.SIGKILL
    assert is_alive(bystander.pid)


def test_a_command_gets_its_grace(start: Start, tmp_path: Path) -> None:
    report = tmp_path / "report"
    script = f"trap 'exit 4' TERM; echo on > {report}; while :; do sleep 0.1; done"
    job = start(script, PREFECT__FLOW_RUN_ID=RUN_ID)
    written(report)

    escaped_processes.kill(job.pid, RUN_ID, SECONDS)

    assert job.wait(SECONDS) == 4


def test_a_command_that_ignores_its_grace_is_killed(start: Start, tmp_path: Path) -> None:
    report = tmp_path / "report"
    script = f"trap '' TERM; echo on > {report}; while :; do sleep 0.1; done"
    job = start(script, PREFECT__FLOW_RUN_ID=RUN_ID)
    written(report)

    escaped_processes.kill(job.pid, RUN_ID, 0.5)

    assert job.wait(SECONDS) == -signal.SIGKILL


def test_an_engine_is_killed_at_once(start: Start) -> None:
    job = start("trap '' TERM; sleep 300; : prefect.engine", PREFECT__FLOW_RUN_ID=RUN_ID)
    started = time.monotonic()

    escaped_processes.kill(job.pid, RUN_ID, 10 * SECONDS)

    assert time.monotonic() - started < SECONDS
    assert job.wait(SECONDS) == -signal.SIGKILL


def test_what_was_launched_together_is_found_by_its_mark(start: Start, tmp_path: Path) -> None:
    report = tmp_path / "report"
    escape = f"setsid sh -c 'echo $$ > {report}; exec sleep 300' &"
    job = start(
        f"({escape}) ; sleep 300", PREFECT__FLOW_RUN_ID=RUN_ID, DISPATCHER_JOB_ID=uuid.uuid4().hex
    )
    escapee = written(report)

    escaped_processes.kill(job.pid, RUN_ID, 0)

    assert not is_alive(escapee)


def test_what_a_dead_job_left_in_its_session_is_still_found(start: Start, tmp_path: Path) -> None:
    report = tmp_path / "report"
    job = start(f"sleep 300 & echo $! > {report}", PREFECT__FLOW_RUN_ID=RUN_ID)
    job.wait(SECONDS)
    orphan = written(report)
    assert is_alive(orphan)

    escaped_processes.kill(job.pid, RUN_ID, 0)

    assert not is_alive(orphan)


def test_what_has_left_the_session_of_a_dead_job_is_found_by_its_run(
    start: Start, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    job = start(
        f"setsid sh -c 'echo $$ > {report}; exec sleep 300' &",
        PREFECT__FLOW_RUN_ID=RUN_ID,
        DISPATCHER_JOB_ID=uuid.uuid4().hex,
    )
    escapee = written(report)
    job.wait(SECONDS)
    assert is_alive(escapee)

    escaped_processes.kill(job.pid, RUN_ID, 0)

    assert not is_alive(escapee)
