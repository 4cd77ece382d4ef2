"""Killing what jobs have left, from inside the fork server. Standard library only at import."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

from executors.process.cleanup import job_marks
from executors.process.cold import trampoline
from executors.process.fork_server import preloading

PROGRAM = Path(__file__).with_name("main.py")
SWEEP = "sweep"
WORKER_PYTHON_VARIABLE = "DISPATCHER_WORKER_PYTHON"


def kill_group(group: int) -> None:
    """Kill a process group whose leader has not been reaped."""
    if group > 0:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def sweep_in_background(job_ids: Collection[str]) -> None:
    """Sweep in a fork, so that no other job has to wait for it."""
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    pid = os.fork()
    if pid == 0:
        signal.set_wakeup_fd(-1)
        trampoline.reset_signals()
        try:
            sweep(job_ids)
        finally:
            os._exit(0)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)


def sweep(job_ids: Collection[str]) -> None:
    """Kill every process that carries the mark of one of these jobs, and its descendants."""
    if not job_ids:
        return
    try:
        # Only here, since it is no module of a job's.
        from executors.process.cleanup import process_tree
    except ImportError:
        # The environment of a flow need not have what the worker has.
        _sweep_elsewhere(job_ids)
        return

    def is_marked(process: Any) -> bool:
        return process_tree.environment(process).get(job_marks.JOB_ID_VARIABLE) in job_ids

    for left in process_tree.Family(is_marked).kill():
        preloading.say(f"process {left.pid} of a job that lost its worker could not be killed")


def _sweep_elsewhere(job_ids: Collection[str]) -> None:
    """Have the worker's interpreter sweep, whatever the settings of this one are."""
    python = os.environ.get(WORKER_PYTHON_VARIABLE, sys.executable)
    command = [python, "-E", str(PROGRAM), SWEEP, *job_ids]
    pid = os.posix_spawn(python, command, os.environ)
    os.waitpid(pid, 0)
