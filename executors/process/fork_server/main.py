"""Starts the fork server, run by path; its arguments are those of ``fork_server.main``.

With ``sweep`` and ids of jobs it kills what is left of them, for a fork server that cannot.

A job must find no module that it has not imported itself, so the packages are made here without
what they import otherwise: the worker's modules, Pydantic, psutil.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

PROCESS = Path(__file__).resolve().parents[1]


def make_packages() -> None:
    """Let modules of ``executors.process`` be imported without those of the packages."""
    for name, directory in (("executors", PROCESS.parent), ("executors.process", PROCESS)):
        package = types.ModuleType(name)
        package.__path__ = [str(directory)]
        sys.modules[name] = package


if __name__ == "__main__":
    make_packages()
    from executors.process.fork_server import fork_server, sweeping

    if sys.argv[1] == sweeping.SWEEP:
        sweeping.sweep(sys.argv[2:])
    else:
        fork_server.main(sys.argv[1:])
