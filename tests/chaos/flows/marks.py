"""What an execution leaves behind, so that two of one run at the same time show.

One line a mark, in a file for each run: a word, the process id, the machine's monotonic clock and
its time of day in seconds, and details.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

BEAT_SECONDS = 0.2


def mark(word: str, *details: str) -> None:
    """Leave a mark, in one write."""
    now = (str(os.getpid()), f"{time.monotonic():.3f}", f"{time.time():.3f}")
    file = Path(os.environ["CHAOS_MARKS"], os.environ["PREFECT__FLOW_RUN_ID"])
    descriptor = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    try:
        os.write(descriptor, (" ".join([word, *now, *details]) + "\n").encode())
    finally:
        os.close(descriptor)


def begin() -> None:
    """Show that the flow begins, and which pools the worker serves that executes it."""
    mark("begin", os.environ.get("CHAOS_POOLS", ""))


def is_open(gate: str) -> bool:
    """Whether a test has opened a gate of this run."""
    name = f"{os.environ['PREFECT__FLOW_RUN_ID']}.{gate}"
    return bool(gate) and Path(os.environ["CHAOS_MARKS"], name).exists()


def live(seconds: float) -> None:
    """Show for so long that this process lives."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        mark("beat")
        time.sleep(min(BEAT_SECONDS, left))


def leave_escapee() -> None:
    """Start a process that leaves its parent and its session and cannot be asked to end."""
    escapee = Path(__file__).with_name("escapee.py")
    subprocess.Popen([sys.executable, "-S", str(escapee)])
