"""What a fork server imports before it serves, so that its jobs need not. Standard library only."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import sys
import traceback
from collections.abc import Iterable
from pathlib import Path

from executors.process.fork_server.engine import engine_imports


class UnsafeModuleError(Exception):
    """A module that no process may be forked with, and why."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} {reason}")
        self.name = name
        self.reason = reason


def preload(engine: str, names: Iterable[str]) -> None:
    """Import what the engine needs, and then the user's modules, and keep it all for good.

    A module that cannot be imported is left out. Raises UnsafeModuleError for one that starts a
    thread or keeps a file or socket open, neither of which jobs could share.
    """
    gc.disable()
    before = open_descriptors()
    for name in engine_imports.NAMES if engine == engine_imports.ENGINE_MODULE else (engine,):
        _import(name, report=False)
    if engine == engine_imports.ENGINE_MODULE:
        # Only here, since a guard needs none of what it brings along.
        from executors.process.fork_server.engine import rehearsal

        rehearsal.rehearse()
    _check(engine, before)
    for name in names:
        _import(name, report=True)
        _check(name, before)
    gc.collect()
    # Otherwise the first collection of every job would copy all these pages.
    gc.freeze()


def say(message: str) -> None:
    """Write a line to the worker's log."""
    sys.stderr.write(f"dispatcher: {message}\n")
    sys.stderr.flush()


def open_descriptors() -> dict[int, str]:
    """Every descriptor of this process but the standard ones, and what it leads to."""
    found = {}
    for link in Path("/proc/self/fd").iterdir():
        # The one of this very listing is closed again.
        with contextlib.suppress(FileNotFoundError):
            if int(link.name) > 2:
                found[int(link.name)] = str(link.readlink())
    return found


def threads() -> list[str]:
    """The names of this process' threads besides the main one, as the kernel knows them."""
    own = str(os.getpid())
    tasks = [task for task in Path("/proc/self/task").iterdir() if task.name != own]
    return [(task / "comm").read_text().strip() for task in tasks]


def _import(name: str, *, report: bool) -> None:
    try:
        importlib.import_module(name)
    except Exception:  # noqa: BLE001 - a stranger's module may raise anything
        if report:
            reason = traceback.format_exc(limit=0).strip().splitlines()[-1]
            say(f"DISPATCHER_PRELOAD: {name} could not be imported and is left out: {reason}")


def _check(name: str, before: dict[int, str]) -> None:
    if running := threads():
        raise UnsafeModuleError(name, f"starts threads ({', '.join(sorted(set(running)))})")
    if opened := {
        number: end for number, end in open_descriptors().items() if number not in before
    }:
        raise UnsafeModuleError(name, f"keeps open {', '.join(sorted(set(opened.values())))}")
