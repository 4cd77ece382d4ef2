"""A job that does what its command line says, step by step, in a fraction of an engine's time.

The first argument is the file of its report; the steps are ``note`` (write what it sees of itself
into the report), ``say:TEXT`` (print), ``wait:FILE`` (until the file exists), ``exit:CODE``, and
the type of a state to propose for its run, such as ``RUNNING``.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

import quick_engine  # type: ignore[import-not-found] # found beside this script

WAIT_SECONDS = 300


def note(report: str) -> None:
    seen = {"environ": dict(os.environ), "cwd": str(Path.cwd()), "pid": os.getpid()}
    with Path(report).open("a") as file:
        file.write(f"seen {json.dumps(seen)}\n")


def wait(path: str) -> None:
    deadline = time.monotonic() + WAIT_SECONDS
    while not Path(path).exists() and time.monotonic() < deadline:
        time.sleep(0.05)


def propose(state_type: str) -> None:
    # Before its time a run stays Pending.
    while quick_engine.propose(state_type)["type"] == "PENDING":
        time.sleep(0.1)


def main() -> None:
    report, *steps = sys.argv[1:]
    for step in steps:
        name, _, value = step.partition(":")
        if name == "note":
            note(report)
        elif name == "say":
            print(value, flush=True)
        elif name == "wait":
            wait(value)
        elif name == "exit":
            os._exit(int(value))
        else:
            propose(name)


if __name__ == "__main__":
    main()
