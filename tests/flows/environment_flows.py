"""Flows that tell in which environment they are executed; for any Prefect from 3.6 on."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import prefect
from prefect import flow

LONG_SECONDS = 300


def note(report: str, **values: object) -> None:
    with Path(report).open("a") as file:
        file.writelines(f"{name}={value}\n" for name, value in values.items())


@flow
def tells(report: str) -> None:
    parent = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    installed = importlib.util.find_spec("dispatcher")
    note(
        report,
        prefect=prefect.__version__,
        python=sys.version.split()[0],
        prefix=sys.prefix,
        VIRTUAL_ENV=os.environ.get("VIRTUAL_ENV", ""),
        dispatcher="present" if installed else "absent",
        forked=b"fork_server" in parent,
        pip=shutil.which("prefect"),
    )


def leave_a_note(flow: Any, flow_run: Any, state: Any) -> None:
    with Path(flow_run.parameters["report"]).open("a") as file:
        file.write("cancelled\n")


@flow(on_cancellation=[leave_a_note])
def waits(report: str) -> None:
    child = subprocess.Popen(["sleep", str(LONG_SECONDS)], start_new_session=True)
    with Path(report).open("a") as file:
        file.write(f"running {os.getpid()} {child.pid}\n")
    time.sleep(LONG_SECONDS)
