from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from executors import errors
from executors.process import launch as launching
from executors.process.cold import cold_process, trampoline
from tests import waiting

SECONDS = 20.0


def launch(directory: Path, *argv: str, **changes: Any) -> launching.Launch:
    arguments: dict[str, Any] = {"environment": dict(os.environ), "stream_output": True, **changes}
    return launching.Launch(job_id="0", argv=argv, directory=directory, **arguments)


def run(directory: Path, *argv: str, **changes: Any) -> int:
    process = cold_process.start(launch(directory, *argv, **changes))
    try:
        return process.wait()
    finally:
        process.reap()


def status_file(directory: Path) -> dict[str, str]:
    """What the kernel says of a job: its ``/proc/self/status``."""
    assert run(directory, "sh", "-c", "cat /proc/self/status > status") == 0
    lines = (directory / "status").read_text().splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@contextlib.contextmanager
def celery_like_signals() -> Iterator[None]:
    """SIGINT ignored as in Celery's pool children, and a signal blocked."""
    handler = signal.signal(signal.SIGINT, signal.SIG_IGN)
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        signal.signal(signal.SIGINT, handler)


@pytest.mark.parametrize(
    ("script", "status"), [("exit 0", 0), ("exit 3", 3), ("kill -9 $$", -9), ("kill $$", -15)]
)
def test_the_exit_status_is_that_of_the_command(tmp_path: Path, script: str, status: int) -> None:
    assert run(tmp_path, "sh", "-c", script) == status


def test_an_ended_process_keeps_its_pid_until_it_is_reaped(tmp_path: Path) -> None:
    process = cold_process.start(launch(tmp_path, "true"))
    process.wait()
    assert psutil.Process(process.pid).status() == psutil.STATUS_ZOMBIE

    process.reap()

    assert not psutil.pid_exists(process.pid)


def test_the_process_runs_in_its_directory_with_its_environment_alone(tmp_path: Path) -> None:
    environment = {"PATH": os.environ["PATH"], "LC_CTYPE": "C.UTF-8", "A": "1"}

    run(tmp_path, "sh", "-c", "pwd > out; env >> out", environment=environment)

    cwd, *variables = (tmp_path / "out").read_text().splitlines()
    assert cwd == str(tmp_path)
    seen = dict(line.split("=", 1) for line in variables)
    assert {name: seen[name] for name in environment} == environment
    # The rest is the shell's own.
    assert seen.keys() - environment.keys() <= {"PWD", "OLDPWD", "SHLVL", "_"}


def test_the_process_leads_a_session_of_its_own(tmp_path: Path) -> None:
    process = cold_process.start(launch(tmp_path, "sleep", "60"))
    try:
        assert os.getsid(process.pid) == os.getpgid(process.pid) == process.pid
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        process.reap()


def test_the_process_ignores_and_blocks_no_signal(tmp_path: Path) -> None:
    with celery_like_signals():
        status = status_file(tmp_path)

    # Without the C library's own two signals, which GNU make ignores and nobody can reset.
    settable = sum(1 << (number - 1) for number in signal.valid_signals())
    assert int(status["SigIgn"], 16) & settable == 0
    assert int(status["SigBlk"], 16) & settable == 0


def test_the_process_has_no_input_and_no_descriptor_of_the_launchers(tmp_path: Path) -> None:
    with (tmp_path / "held").open("w") as held:
        os.set_inheritable(held.fileno(), True)
        run(tmp_path, sys.executable, "-c", DESCRIPTORS)

    assert (tmp_path / "descriptors").read_text().split() == ["0", "/dev/null", "1", "2"]


DESCRIPTORS = """
import os
names = [name for name in sorted(os.listdir("/proc/self/fd"), key=int)]
open_ones = [n for n in names if os.path.exists(f"/proc/self/fd/{n}") and int(n) > 0]
with open("descriptors", "w") as out:
    out.write(f"0 {os.readlink('/proc/self/fd/0')} {' '.join(open_ones)}")
"""


def test_output_goes_where_the_launchers_goes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "sh", "-c", "echo out; echo err >&2")

    assert capfd.readouterr() == ("out\n", "err\n")


def test_nothing_is_printed_if_it_is_not_wanted(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    run(tmp_path, "sh", "-c", "echo out; echo err >&2", stream_output=False)

    assert capfd.readouterr() == ("", "")


def test_a_program_beside_the_flow_is_found_by_its_relative_path(tmp_path: Path) -> None:
    (tmp_path / "run.sh").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "run.sh").chmod(0o700)

    assert run(tmp_path, "./run.sh") == 7


def test_the_path_of_the_jobs_environment_counts(tmp_path: Path) -> None:
    (tmp_path / "only-here").write_text("#!/bin/sh\nexit 7\n")
    (tmp_path / "only-here").chmod(0o700)

    assert run(tmp_path, "only-here", environment={"PATH": str(tmp_path)}) == 7


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no-such-command", "'no-such-command' was not found"),
        ("./no-such-file", "'./no-such-file' does not exist"),
        ("./plain", "'./plain' is not executable"),
        ("/", "'/' does not exist"),
    ],
)
def test_a_command_that_cannot_be_run_is_an_error(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "plain").write_text("text")

    with pytest.raises(errors.LaunchError, match=message) as raised:
        cold_process.start(launch(tmp_path, name, "--password=hunter2"))
    assert "hunter2" not in str(raised.value)


def test_a_missing_working_directory_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(errors.LaunchError, match=r"working directory '.*gone' does not exist"):
        cold_process.start(launch(tmp_path / "gone", "true"))


@pytest.mark.parametrize(
    "environment", [{"PATH": "/bin:/usr/bin", "A": "hunter2\0"}, {"PATH": "/bin", "A=B": "hunter2"}]
)
def test_an_impossible_environment_is_an_error_that_shows_no_value(
    tmp_path: Path, environment: dict[str, str]
) -> None:
    with pytest.raises(errors.LaunchError, match="null byte or '='") as raised:
        cold_process.start(launch(tmp_path, "true", environment=environment))
    assert "hunter2" not in str(raised.value)


def test_an_environment_that_the_system_refuses_is_an_error(tmp_path: Path) -> None:
    huge = {"PATH": os.environ["PATH"], "A": "x" * 10_000_000}

    with pytest.raises(errors.LaunchError, match="too long"):
        cold_process.start(launch(tmp_path, "true", environment=huge))


@pytest.mark.parametrize(
    ("content", "status"),
    [
        ("#!/no/such/interpreter\n", trampoline.EXIT_NOT_FOUND),
        ("neither script nor program", trampoline.EXIT_NOT_EXECUTABLE),
    ],
)
def test_a_program_that_the_system_refuses_has_the_exit_status_of_a_shell(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], content: str, status: int
) -> None:
    (tmp_path / "program").write_text(content)
    (tmp_path / "program").chmod(0o700)

    assert run(tmp_path, "./program") == status
    assert capfd.readouterr().err.startswith("./program: ")


def test_a_process_whose_launcher_died_before_it_could_watch_it_ends_at_once() -> None:
    other_pid = str(os.getppid())

    ended = subprocess.run(
        [sys.executable, "-I", "-S", str(cold_process.TRAMPOLINE), other_pid, "echo", "ran"],
        capture_output=True,
        check=False,
    )

    assert (ended.returncode, ended.stdout) == (trampoline.EXIT_LAUNCHER_GONE, b"")


LAUNCHER = """
import os, sys
from pathlib import Path
from executors.process import launch
from executors.process.cold import cold_process

started = cold_process.start(
    launch.Launch(
        job_id="0", argv=("sleep", "300"), directory=Path("/"), environment=dict(os.environ)
    )
)
print(started.pid, flush=True)
started.wait()
"""


def test_the_process_dies_with_its_launcher() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER], stdout=subprocess.PIPE, text=True
    ) as launcher:
        assert launcher.stdout is not None
        job = psutil.Process(int(launcher.stdout.readline()))
        waiting.wait_for(
            lambda: job.name() == "sleep", seconds=SECONDS, what="the command is running"
        )
        launcher.kill()

        waiting.wait_for(
            lambda: not job.is_running() or job.status() == psutil.STATUS_ZOMBIE,
            seconds=SECONDS,
            what="the job is gone",
        )
