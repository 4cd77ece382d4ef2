"""Flows for what only Prefect's own engine can show."""

from __future__ import annotations

import os
from pathlib import Path

from prefect import flow


def note(report: str, line: str) -> None:
    with Path(report).open("a") as file:
        file.write(line + "\n")


@flow
def notes_directory(report: str) -> None:
    """Tell where it runs."""
    note(report, f"directory {Path.cwd()}")


@flow(retries=1)
def fails_once(report: str) -> None:
    """Tell in which process each of its two attempts runs."""
    note(report, f"attempt {os.getpid()}")
    if len(Path(report).read_text().splitlines()) == 1:
        raise ValueError("as the test wants it")
