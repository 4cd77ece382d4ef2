"""The executor with small commands in place of Prefect's engine, started cold and warm."""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import psutil
import pytest

from dispatcher.prefect_api import schemas
from executors import base, errors
from executors.process import ProcessExecutor, ProcessJobConfiguration
from tests import waiting, warm

SECONDS = 20.0
HOST = socket.gethostname()
FLOW_RUN = schemas.FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4())


class Job:
    """A job in a thread, and the lines it writes to the file ``report``."""

    def __init__(self, executor: ProcessExecutor, script: str, directory: Path, **env: str) -> None:
        self.executor = executor
        self.identifier = ""
        self.configuration = configuration(
            shlex.join(["sh", "-c", script]), REPORT=str(directory / "report"), **env
        )
        self._report = directory / "report"
        self._pool = futures.ThreadPoolExecutor(max_workers=1)
        self._result = self._pool.submit(
            self.executor.run, FLOW_RUN, self.configuration, self._started
        )

    def result(self) -> base.ExecutorResult:
        return self._result.result(SECONDS)

    def stop(self, grace_seconds: float) -> None:
        self.executor.kill_infrastructure(self.identifier, self.configuration, grace_seconds)

    def lines(self, count: int) -> list[str]:
        """Wait until the job has written that many lines."""
        return waiting.wait_for(
            lambda: self._read(count), seconds=SECONDS, what=f"{count} lines of the report"
        )

    def close(self) -> None:
        if not self._result.done():
            with contextlib.suppress(errors.InfrastructureNotFound):
                self.stop(0)
        self._pool.shutdown()

    def _read(self, count: int) -> list[str]:
        lines = self._report.read_text().splitlines() if self._report.exists() else []
        return lines if len(lines) >= count else []

    def _started(self, identifier: str) -> None:
        self.identifier = identifier


class Jobs:
    """Starts jobs and leaves none behind."""

    def __init__(self, executor: ProcessExecutor, directory: Path) -> None:
        self._executor = executor
        self._directory = directory
        self._started: list[Job] = []

    def start(self, script: str, **env: str) -> Job:
        directory = self._directory / str(len(self._started))
        directory.mkdir()
        self._started.append(Job(self._executor, script, directory, **env))
        return self._started[-1]

    def close(self) -> None:
        for job in self._started:
            job.close()


@pytest.fixture(scope="module")
def servers() -> Iterator[warm.Servers]:
    with warm.servers() as kept:
        yield kept


@pytest.fixture(params=["cold", "warm"])
def executor(request: pytest.FixtureRequest) -> ProcessExecutor:
    return warm.executor_for(request)


@pytest.fixture
def jobs(executor: ProcessExecutor, tmp_path: Path) -> Iterator[Jobs]:
    started = Jobs(executor, tmp_path)
    yield started
    started.close()


def configuration(command: str, **env: str) -> ProcessJobConfiguration:
    return ProcessJobConfiguration(command=command, env=dict(env))


def run(executor: ProcessExecutor, command: str, **env: str) -> base.ExecutorResult:
    return executor.run(FLOW_RUN, configuration(command, **env), lambda _: None)


def is_alive(pid: str | int) -> bool:
    try:
        return psutil.Process(int(pid)).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


# Leaves the session, the process group and its parent; only the environment gives it away.
ESCAPEE = f"""
import os, signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open(os.environ["REPORT"], "a") as report:
    report.write(f"{{os.getpid()}}\\n")
time.sleep({10 * SECONDS})
"""
ESCAPE = shlex.join([sys.executable, "-c", ESCAPEE])


def test_the_result_names_process_and_status_and_explains_it(executor: ProcessExecutor) -> None:
    identifiers: list[str] = []

    result = executor.run(FLOW_RUN, configuration("sh -c 'exit 127'"), identifiers.append)

    assert [result.identifier] == identifiers
    assert result.identifier.startswith(f"{HOST}:")
    assert result.status_code == 127
    assert result.reported_state is None
    assert result.explanation is not None


def test_a_fresh_directory_is_removed_with_all_that_the_job_put_there(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    report = tmp_path / "report"
    script = 'pwd > "$REPORT"; mkdir a; touch a/b; chmod 500 a .'

    run(executor, shlex.join(["sh", "-c", script]), REPORT=str(report))

    assert report.read_text().strip()
    assert not Path(report.read_text().strip()).exists()


def test_a_configured_directory_is_used_and_left(executor: ProcessExecutor, tmp_path: Path) -> None:
    settings = ProcessJobConfiguration(command="touch here", working_dir=tmp_path)

    executor.run(FLOW_RUN, settings, lambda _: None)

    assert (tmp_path / "here").exists()


def test_every_launch_has_a_mark_of_its_own(executor: ProcessExecutor, tmp_path: Path) -> None:
    report = tmp_path / "report"
    for _ in range(2):
        run(executor, "sh -c 'echo $DISPATCHER_JOB_ID >> $REPORT'", REPORT=str(report))

    first, second = report.read_text().splitlines()
    assert first != second


def test_a_failed_launch_leaves_nothing_behind() -> None:
    before = threading.active_count()

    with pytest.raises(errors.LaunchError):
        run(ProcessExecutor(), "no-such-command")

    assert threading.active_count() == before


def test_an_error_of_the_callers_kills_the_job_and_is_passed_on(executor: ProcessExecutor) -> None:
    identifiers: list[str] = []

    def refuse(identifier: str) -> None:
        identifiers.append(identifier)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        executor.run(FLOW_RUN, configuration("sleep 300"), refuse)

    assert not is_alive(identifiers[0].rpartition(":")[2])


def test_an_exception_from_a_signal_handler_kills_the_job_and_is_passed_on(
    executor: ProcessExecutor,
) -> None:
    identifiers: list[str] = []

    def interrupt(*_: object) -> None:
        raise SystemExit(1)

    def started(identifier: str) -> None:
        identifiers.append(identifier)
        threading.Timer(0.2, os.kill, (os.getpid(), signal.SIGUSR2)).start()

    handler = signal.signal(signal.SIGUSR2, interrupt)
    try:
        with pytest.raises(SystemExit):
            executor.run(FLOW_RUN, configuration("sleep 300"), started)
    finally:
        signal.signal(signal.SIGUSR2, handler)

    assert not is_alive(identifiers[0].rpartition(":")[2])


def test_a_signal_handler_runs_while_the_main_thread_waits(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    done = tmp_path / "done"

    def note(*_: object) -> None:
        done.touch()

    handler = signal.signal(signal.SIGUSR2, note)
    script = f"kill -USR2 {os.getpid()}; until [ -e {done} ]; do sleep 0.05; done"
    try:
        result = run(executor, shlex.join(["sh", "-c", script]))
    finally:
        signal.signal(signal.SIGUSR2, handler)

    assert result.status_code == 0


def test_stopping_asks_the_whole_group_to_terminate(jobs: Jobs) -> None:
    job = jobs.start(
        "trap 'echo asked >> $REPORT; exit 4' TERM; echo on >> $REPORT; sleep 99 & wait"
    )
    job.lines(1)

    job.stop(SECONDS)

    assert job.result().status_code == 4
    assert job.lines(2) == ["on", "asked"]


def test_a_job_that_will_not_end_is_killed_after_the_grace(jobs: Jobs) -> None:
    job = jobs.start("trap '' TERM; echo on >> $REPORT; while :; do sleep 0.1; done")
    job.lines(1)
    started = time.monotonic()

    job.stop(1)

    assert 1 <= time.monotonic() - started < 5
    assert job.result().status_code == -signal.SIGKILL


def test_without_a_grace_a_job_is_killed_unasked(jobs: Jobs) -> None:
    job = jobs.start("trap 'echo asked >> $REPORT' TERM; echo on >> $REPORT; sleep 99 & wait; wait")
    job.lines(1)

    job.stop(0)

    assert job.result().status_code == -signal.SIGKILL
    assert job.lines(1) == ["on"]


def test_a_second_stop_may_shorten_the_grace(jobs: Jobs) -> None:
    job = jobs.start("trap '' TERM; echo on >> $REPORT; while :; do sleep 0.1; done")
    job.lines(1)
    with futures.ThreadPoolExecutor() as pool:
        patient = pool.submit(job.stop, 10 * SECONDS)
        job.stop(0.2)
        patient.result(SECONDS)

    assert job.result().status_code == -signal.SIGKILL


@pytest.mark.parametrize("executor", ["cold"], indirect=True)
def test_an_engine_that_is_not_connected_is_killed_at_once(jobs: Jobs) -> None:
    job = jobs.start(
        "trap 'echo asked >> $REPORT' TERM; echo on >> $REPORT; sleep 99; : prefect.engine"
    )
    job.lines(1)

    job.stop(10 * SECONDS)

    assert job.result().status_code == -signal.SIGKILL
    assert job.lines(1) == ["on"]


# Behaves as Prefect's engine does on the control connection.
ENGINE = """
import os, signal, socket, sys, time  # prefect.engine
signal.signal(signal.SIGTERM, lambda *_: sys.exit(6))
port = int(os.environ["PREFECT__CONTROL_PORT"])
connection = socket.create_connection(("127.0.0.1", port))
connection.sendall(os.environ["PREFECT__CONTROL_TOKEN"].encode() + b"\\n")
connection.sendall(b"\\x00PF\\x02\\x01")
connection.recv(5, socket.MSG_WAITALL)
exec(sys.argv[1])
"""
NOTE = "open(os.environ['REPORT'], 'a').write('on\\n')"
PAYLOAD = '{"disposition":"STATE_REPORTED","state_type":"COMPLETED"}'
CONCLUDE = f"""
connection.sendall(bytes([1, 0, 0, 0, {len(PAYLOAD)}]) + {PAYLOAD.encode()!r})
connection.recv(1)
"""


def engine(script: str) -> str:
    return shlex.join([sys.executable, "-c", ENGINE, script])


def test_an_engine_that_agrees_is_asked_to_terminate(jobs: Jobs) -> None:
    job = jobs.start(
        engine(f"{NOTE}; connection.recv(1); connection.sendall(b'a'); time.sleep(99)")
    )
    job.lines(1)

    job.stop(SECONDS)

    assert job.result().status_code == 6


def test_an_engine_that_does_not_agree_is_killed(jobs: Jobs) -> None:
    job = jobs.start(engine(f"{NOTE}; connection.recv(1); connection.close(); time.sleep(99)"))
    job.lines(1)

    job.stop(10 * SECONDS)

    assert job.result().status_code == -signal.SIGKILL


def test_an_engine_that_has_reported_its_last_state_is_left_to_end(jobs: Jobs) -> None:
    job = jobs.start(engine(f"{CONCLUDE}\n{NOTE}; time.sleep(1)"))
    job.lines(1)

    job.stop(SECONDS)

    assert job.result().status_code == 0
    assert job.result().reported_state is schemas.StateType.COMPLETED


def test_an_engine_that_hangs_after_its_report_is_killed_after_the_grace(jobs: Jobs) -> None:
    job = jobs.start(engine(f"{CONCLUDE}\n{NOTE}; time.sleep(99)"))
    job.lines(1)

    job.stop(0.5)

    assert job.result().status_code == -signal.SIGKILL
    assert job.result().reported_state is schemas.StateType.COMPLETED


def test_stopping_reaches_processes_that_left_the_session_and_their_parents(jobs: Jobs) -> None:
    job = jobs.start(f"trap '' TERM; {ESCAPE}; {ESCAPE}; while :; do sleep 0.1; done")
    escapees = job.lines(2)
    assert all(is_alive(pid) for pid in escapees)

    job.stop(0.5)

    assert not any(is_alive(pid) for pid in escapees)


def test_a_child_that_has_nothing_of_the_job_but_its_parent_is_killed_too(jobs: Jobs) -> None:
    child = 'env -i setsid sh -c "echo \\$\\$ >> $REPORT; exec sleep 300"'
    job = jobs.start(f"trap '' TERM; {child} & while :; do sleep 0.1; done")
    (pid,) = job.lines(1)

    job.stop(0.5)

    assert not is_alive(pid)


def test_a_failed_jobs_escaped_processes_are_killed(jobs: Jobs) -> None:
    job = jobs.start(f"{ESCAPE}; until [ -s $REPORT ]; do sleep 0.05; done; exit 1")

    assert job.result().status_code == 1
    assert not is_alive(job.lines(1)[0])


def test_a_successful_jobs_group_is_killed(jobs: Jobs) -> None:
    job = jobs.start("sleep 300 & echo $! >> $REPORT")

    assert job.result().status_code == 0
    (pid,) = job.lines(1)
    waiting.wait_for(lambda: not is_alive(pid), seconds=SECONDS, what="the child is gone")


def test_what_a_successful_job_put_into_a_session_of_its_own_stays(jobs: Jobs) -> None:
    job = jobs.start(f"{ESCAPE}; until [ -s $REPORT ]; do sleep 0.05; done")

    assert job.result().status_code == 0
    (pid,) = job.lines(1)
    assert is_alive(pid)
    os.kill(int(pid), signal.SIGKILL)


def test_another_job_is_not_touched(jobs: Jobs) -> None:
    victim = jobs.start("echo on >> $REPORT; sleep 300")
    bystander = jobs.start("echo on >> $REPORT; until [ -e $REPORT.end ]; do sleep 0.05; done")
    victim.lines(1)
    bystander.lines(1)

    victim.stop(0)
    Path(f"{bystander.configuration.env['REPORT']}.end").touch()

    assert victim.result().status_code == -signal.SIGKILL
    assert bystander.result().status_code == 0


def test_stopping_again_after_the_end_finds_nothing(jobs: Jobs) -> None:
    job = jobs.start("exit 0")
    job.result()

    with pytest.raises(errors.InfrastructureNotFound):
        job.stop(0)


def test_many_jobs_run_at_once_on_one_executor(executor: ProcessExecutor) -> None:
    def one(number: int) -> int:
        command = configuration(f"sh -c 'sleep 0.2; exit {number}'")
        return executor.run(FLOW_RUN, command, lambda _: None).status_code

    with futures.ThreadPoolExecutor(max_workers=10) as pool:
        assert list(pool.map(one, range(20))) == list(range(20))


def test_jobs_leave_no_thread_and_no_descriptor(executor: ProcessExecutor) -> None:
    run(executor, "true")
    process = psutil.Process()
    before = process.num_fds(), threading.active_count(), len(process.children())

    for number in range(50):
        run(executor, f"sh -c 'exit {number % 2}'")

    assert (process.num_fds(), threading.active_count(), len(process.children())) == before


@pytest.mark.parametrize(
    "infrastructure_pid", ["", "1", f"{HOST}:", ":1", f"{HOST}:x", f"{HOST}:0", f"{HOST}:-1", "²:²"]
)
def test_what_is_no_process_is_not_found(infrastructure_pid: str) -> None:
    with pytest.raises(errors.InfrastructureNotFound):
        ProcessExecutor().kill_infrastructure(infrastructure_pid, configuration("true"))


def test_a_process_of_another_host_is_not_available() -> None:
    with pytest.raises(errors.InfrastructureNotAvailable, match="elsewhere"):
        ProcessExecutor().kill_infrastructure("elsewhere:1", configuration("true"))
