from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dispatcher.standalone import tether
from tests.waiting import wait_for

# Starts a grandchild in a session of its own, as a flow run is, and waits.
FAMILY = """
import subprocess, sys, time
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
print(child.pid, flush=True)
time.sleep(float(sys.argv[1]))
"""


def tethered(*command: str, supervisor: int | None = None) -> subprocess.Popen[str]:
    own = [sys.executable, "-I", "-S", tether.__file__, str(supervisor or os.getpid())]
    return subprocess.Popen(
        [*own, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    output, errors = process.communicate(timeout=20)
    return process.returncode, output, errors


@pytest.fixture
def family() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A tether that holds a process, and the pid of the latter's detached child."""
    with tethered(sys.executable, "-c", FAMILY, "600") as process:
        assert process.stdout
        grandchild = int(process.stdout.readline())
        yield process, grandchild
        process.kill()
        with contextlib.suppress(ProcessLookupError):
            os.kill(grandchild, signal.SIGKILL)


def is_gone(pid: int) -> bool:
    return not psutil.pid_exists(pid)


@pytest.mark.parametrize(
    ("script", "code"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 137), ("kill $$", 143)]
)
def test_exit_code_is_that_of_the_process(script: str, code: int) -> None:
    assert finish(tethered("sh", "-c", script)) == (code, "", "")


def test_unknown_program_is_reported() -> None:
    code, _, errors = finish(tethered("/no/such/program"))

    assert code == 127
    assert errors == "/no/such/program: No such file or directory\n"


@pytest.mark.parametrize("number", tether.FORWARDED)
def test_signals_are_passed_on(number: signal.Signals) -> None:
    script = f"trap 'echo got it; exit 5' {number.name[3:]}; echo up; while :; do sleep 0.05; done"
    process = tethered("sh", "-c", script)
    assert process.stdout
    assert process.stdout.readline() == "up\n"

    process.send_signal(number)

    assert finish(process) == (5, "got it\n", "")


def test_descendants_end_with_the_process() -> None:
    process = tethered(sys.executable, "-c", FAMILY, "0")

    code, output, _ = finish(process)

    assert code == 0
    assert is_gone(int(output))


def test_descendants_end_when_the_process_is_killed(
    family: tuple[subprocess.Popen[str], int],
) -> None:
    process, grandchild = family
    child = psutil.Process(grandchild).parent()
    assert child is not None

    child.kill()

    assert process.wait(timeout=20) == 137
    assert is_gone(grandchild)


def test_kill_signal_ends_everything(family: tuple[subprocess.Popen[str], int]) -> None:
    process, grandchild = family

    process.send_signal(tether.KILL_SIGNAL)

    assert process.wait(timeout=20) == 137
    assert is_gone(grandchild)


def test_process_does_not_outlive_a_killed_tether(
    family: tuple[subprocess.Popen[str], int],
) -> None:
    process, grandchild = family
    child = psutil.Process(grandchild).parent()
    assert child is not None

    process.kill()

    wait_for(lambda: is_gone(child.pid), seconds=20, what="the process is gone")


def test_everything_ends_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    supervise = """
import os, subprocess, sys
tether, code = sys.argv[1:]
own = [sys.executable, "-I", "-S", tether, str(os.getpid())]
subprocess.Popen([*own, sys.executable, "-c", code, "600"]).wait()
"""
    supervisor = subprocess.Popen(
        [sys.executable, "-c", supervise, tether.__file__, FAMILY],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    with supervisor:
        assert supervisor.stdout
        supervisor.stdout.readline()
        descendants = psutil.Process(supervisor.pid).children(recursive=True)
        supervisor.kill()

    assert len(descendants) == 3
    for process in descendants:
        wait_for(lambda: is_gone(process.pid), seconds=20, what=f"{process} is gone")  # noqa: B023


def test_nothing_is_started_when_the_supervisor_is_gone_already() -> None:
    code, output, _ = finish(tethered("echo", "started", supervisor=1))

    assert (code, output) == (1, "")
