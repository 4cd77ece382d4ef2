"""Flows that tell in what process they are, to compare the ways to start it."""

from __future__ import annotations

import gc
import json
import logging
import os
import random
import signal
import sys
import time
from pathlib import Path
from typing import Any

import prefect
from prefect import flow, task
from prefect.settings import get_current_settings

LONG_SECONDS = 300


def handlers(name: str | None) -> list[str]:
    logger = logging.getLogger(name)
    kinds = [type(handler).__name__ for handler in logger.handlers]
    return [*kinds, str(logger.level), str(logger.propagate)]


def descriptors() -> list[str]:
    """What kinds of files are open; how many depends on the moment.

    Prefect's threads read certificates at any time, and close them again.
    """
    found = set()
    for link in Path("/proc/self/fd").iterdir():
        if link.exists() or link.is_symlink():
            try:
                found.add(str(link.readlink()).partition(":[")[0])
            except FileNotFoundError:
                continue
    return sorted(kind for kind in found if not kind.endswith((".crt", ".pem")))


@flow
def dumps(report: str) -> None:
    """Writes all that a flow could tell by how its process was started."""
    settings: dict[str, Any] = get_current_settings().model_dump(mode="json")
    seen = {
        "settings": settings,
        "profile": prefect.context.get_settings_context().profile.name,
        "environ": dict(os.environ),
        "path": sys.path,
        "argv": sys.argv,
        "main": sys.modules["__main__"].__spec__.name,  # type: ignore[union-attr]
        "signals": {
            int(n): str(signal.getsignal(n)).split(" at ")[0] for n in signal.valid_signals()
        },
        "descriptors": descriptors(),
        "loggers": {
            name: handlers(name or None)
            for name in ("", "prefect", "prefect.flow_runs", "prefect.task_runs", "httpx")
        },
        "gc": gc.isenabled(),
        "modules": sorted(name for name in sys.modules if not name.startswith("__prefect_loader")),
        "engine": sys.modules["__main__"].__file__,
    }
    unique = {"cwd": str(Path.cwd()), "random": random.random(), "parent": os.getppid()}
    Path(report).write_text(json.dumps([seen, unique]))


@task
def double(number: int) -> int:
    return 2 * number


@flow
def maps_tasks(report: str) -> None:
    """Runs tasks in threads."""
    found = double.map(range(5)).result()
    Path(report).write_text(json.dumps(found))


@flow
def forks_away(report: str) -> None:
    """Leaves a process in a session of its own that has started no other program."""
    if os.fork() == 0:
        os.setsid()
        if os.fork():
            os._exit(0)
        with Path(report).open("a") as file:
            file.write(f"escapee {os.getpid()}\n")
        time.sleep(LONG_SECONDS)
        os._exit(0)
    with Path(report).open("a") as file:
        file.write(f"running {os.getpid()}\n")
    time.sleep(LONG_SECONDS)
