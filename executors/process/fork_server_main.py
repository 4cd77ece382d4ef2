"""Starts the fork server, run by path; its arguments are those of ``fork_server.main``.

A job must find no module that it has not imported itself, so the packages are made here without
what they import otherwise: the worker's modules, Pydantic, psutil.
"""

from __future__ import annotations

import sys
import types
from pathlib import Path

HERE = Path(__file__).resolve().parent


def make_packages() -> None:
    """Let modules of ``executors.process`` be imported without those of the packages."""
    for name, directory in (("executors", HERE.parent), ("executors.process", HERE)):
        package = types.ModuleType(name)
        package.__path__ = [str(directory)]
        sys.modules[name] = package


if __name__ == "__main__":
    make_packages()
    import executors.process.fork_server as fork_server  # noqa: PLR0402 - it is no attribute yet

    fork_server.main(sys.argv[1:])
