"""Runs whose job is a small script in place of Prefect's engine, for tests that need many."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

from dispatcher.prefect_api import schemas
from tests import stack as stacks

COMPLETE = ("RUNNING", "note", "COMPLETED")


def command(report: Path, *steps: str) -> str:
    """The command of a job that does these steps, see ``tests/flows/light_job.py``."""
    script = str(stacks.FLOWS / "light_job.py")
    return shlex.join([sys.executable, "-S", "-E", script, str(report), *steps])


def run(
    stack: stacks.Stack,
    deployment: schemas.Deployment,
    *steps: str,
    job_variables: dict[str, Any] | None = None,
    **values: Any,
) -> stacks.Run:
    """A run whose job does these steps."""
    report = stack.directory / f"report-{uuid4().hex}"
    variables = {"command": command(report, *steps), **(job_variables or {})}
    made = stack.run(deployment, job_variables=variables, **values)
    return stacks.Run(stack.objects, made.flow_run, report)


def seen(run: stacks.Run) -> list[dict[str, Any]]:
    """What the job has noted of itself, the oldest first."""
    return [json.loads(line.partition(" ")[2]) for line in run.lines()]


def wait_until_seen(run: stacks.Run) -> dict[str, Any]:
    """Wait until the job has noted what it sees, and return that."""
    run.wait_for_line("seen")
    return seen(run)[-1]


def pid_of(run: stacks.Run) -> int:
    """The process of a run's job, by its infrastructure pid."""
    _, _, pid = str(run.read().infrastructure_pid).rpartition(":")
    return int(pid)
