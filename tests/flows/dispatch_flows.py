"""Light flows whose reports show when and how often they were executed."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow

WAIT_SECONDS = 120


def note(report: str, line: str) -> None:
    with Path(report).open("a") as file:
        file.write(line + "\n")


@flow
def notes(report: str) -> None:
    """Leave one line for each execution."""
    note(report, f"executed {os.getpid()}")


@flow
def waits_for_file(report: str, file: str) -> None:
    """Go on until a test creates the file."""
    note(report, f"running {os.getpid()}")
    deadline = time.monotonic() + WAIT_SECONDS
    while not Path(file).exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    note(report, "executed")
