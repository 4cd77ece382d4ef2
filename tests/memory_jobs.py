"""Jobs that use memory, for the process executor without Prefect's engine."""

from __future__ import annotations

import shlex
import sys
import uuid
from typing import Any

from dispatcher.prefect_api import schemas
from dispatcher.testing.executors import NoReferences
from executors.process import ProcessJobConfiguration

MIB = 2**20
FLOW_RUN = schemas.FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4())

_TEMPLATE = {
    "job_configuration": {"command": "{{ command }}", "env": "{{ env }}"},
    "variables": {"properties": {"command": {"type": "string"}, "env": {"type": "object"}}},
}

# Writes to as many MiB as it is told, then waits; with a second number, in so many processes.
TAKE = """
import os, sys, time
size, processes = int(sys.argv[1]), int(sys.argv[2])
for _ in range(processes - 1):
    if not os.fork():
        break
taken = bytearray(size * 2**20)
for start in range(0, len(taken), 4096):
    taken[start] = 1
time.sleep(float(sys.argv[3]))
"""

# The same in a process that has left the session, the group and its parent.
TAKE_ELSEWHERE = f"""
import os, sys, time
if os.fork():
    time.sleep(float(sys.argv[3]))
    os._exit(0)
os.setsid()
if os.fork():
    os._exit(0)
exec({TAKE!r})
"""


def take(mebibytes: int, *, processes: int = 1, seconds: float = 0, elsewhere: bool = False) -> str:
    """A command that uses so much memory in each of its processes, and stays so long."""
    program = TAKE_ELSEWHERE if elsewhere else TAKE
    arguments = map(str, (mebibytes, processes, seconds))
    return shlex.join([sys.executable, "-S", "-c", program, *arguments])


def configuration(command: str, limit: str | None = None) -> ProcessJobConfiguration:
    """What a run with this command and the job variable ``memory_limit`` is started with."""
    values: dict[str, Any] = {"command": command, "env": {}, "memory_limit": limit}
    return ProcessJobConfiguration.from_template_and_values(_TEMPLATE, values, NoReferences())
