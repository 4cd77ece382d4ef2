"""Flows that end, or refuse to end, in every way a job can.

``report`` is a file to which a flow writes what a test wants to know, one line each.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any
from uuid import UUID

from prefect import flow, pause_flow_run, suspend_flow_run
from prefect.deployments import run_deployment

LONG_SECONDS = 300

# Leaves its parent and its session, and cannot be asked to end.
ESCAPEE = f"""
import os, signal, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
if os.fork():
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
with open(sys.argv[1], "a") as report:
    report.write(f"escapee {{os.getpid()}}\\n")
time.sleep({LONG_SECONDS})
"""


def note(report: str, line: str) -> None:
    with Path(report).open("a") as file:
        file.write(line + "\n")


def note_cancellation(flow: Any, flow_run: Any, state: Any) -> None:
    note(flow_run.parameters["report"], "on_cancellation")


def note_crash(flow: Any, flow_run: Any, state: Any) -> None:
    note(flow_run.parameters["report"], "on_crashed")


@flow
def completes(report: str) -> None:
    seen = {
        "environ": dict(os.environ),
        "cwd": str(Path.cwd()),
        "session": os.getsid(0),
        "pid": os.getpid(),
    }
    note(report, json.dumps(seen))


@flow
def waits_for_child(report: str, deployment: str) -> None:
    run_deployment(UUID(deployment), parameters={"report": report}, poll_interval=0.5)


@flow
def raises(report: str) -> None:
    raise ValueError("as the test wants it")


@flow
def exits(report: str, code: int = 3) -> None:
    os._exit(code)


@flow
def kills_itself(report: str) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@flow(on_cancellation=[note_cancellation], on_crashed=[note_crash])
def waits(report: str) -> None:
    note(report, f"running {os.getpid()}")
    time.sleep(LONG_SECONDS)


@flow
def pauses(report: str) -> None:
    note(report, f"running {os.getpid()}")
    pause_flow_run(timeout=LONG_SECONDS)


@flow
def suspends(report: str) -> None:
    suspend_flow_run(timeout=LONG_SECONDS)


@flow(on_cancellation=[note_cancellation], on_crashed=[note_crash])
async def waits_async(report: str) -> None:
    import asyncio

    note(report, f"running {os.getpid()}")
    await asyncio.sleep(LONG_SECONDS)


@flow(on_cancellation=[note_cancellation], on_crashed=[note_crash])
def waits_with_children(report: str) -> None:
    subprocess.Popen([sys.executable, "-c", ESCAPEE, report])
    note(report, f"running {os.getpid()}")
    time.sleep(LONG_SECONDS)


@flow
def leaves_behind(report: str) -> None:
    """Ends, but for a process that it has moved away."""
    subprocess.Popen([sys.executable, "-c", ESCAPEE, report])
    while not (Path(report).exists() and "escapee" in Path(report).read_text()):
        time.sleep(0.05)


@flow(on_cancellation=[note_cancellation], on_crashed=[note_crash])
def ignores_everything(report: str) -> None:
    """Never ends by itself, however often it is interrupted."""
    subprocess.Popen([sys.executable, "-c", ESCAPEE, report])
    deadline = time.monotonic() + LONG_SECONDS
    while time.monotonic() < deadline:
        try:
            note(report, f"running {os.getpid()}")
            time.sleep(LONG_SECONDS)
        except BaseException as error:  # noqa: BLE001 - that is its point
            note(report, f"ignored {type(error).__name__}")


@flow(on_cancellation=[note_cancellation], on_crashed=[note_crash])
def takes_sigterm_away(report: str) -> None:
    """Replaces Prefect's own handler, after which its engine agrees to nothing."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    note(report, f"running {os.getpid()}")
    time.sleep(LONG_SECONDS)


@flow
def takes_memory(report: str, mebibytes: int, go: str) -> None:
    """Writes to so much memory, and has it until the file ``go`` is there."""
    taken = bytearray(mebibytes * 2**20)
    for start in range(0, len(taken), 4096):
        taken[start] = 1
    note(report, f"took {len(taken)}")
    while not Path(go).exists():
        time.sleep(0.1)
