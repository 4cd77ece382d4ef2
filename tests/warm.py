"""Fork servers for tests, with an engine that needs no Prefect."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.prefect_api import schemas
from executors import base, process
from executors.process import start_modes, starting
from executors.process.warm import fork_server_keeper
from tests import waiting

ENGINES = Path(__file__).parent / "engines"
ENGINE = "command_engine"
READY_SECONDS = 30.0
COMMAND = shlex.join([sys.executable, "-m", ENGINE])


def plain() -> dict[str, str]:
    """What jobs get of the environment of this process."""
    return fork_server_keeper.plain_environment(os.environ)


def environment(**changes: str) -> dict[str, str]:
    """The same, with the engines for tests on Python's path."""
    return {**plain(), "PYTHONPATH": str(ENGINES), **changes}


class Servers:
    """A nursery, and what its pool children would know of it."""

    def __init__(
        self, kept: fork_server_keeper.ForkServerKeeper, directory: Path, engine: str
    ) -> None:
        self.nursery = kept
        self.directory = directory
        self._engine = engine

    def starts(self, mode: start_modes.Mode = "warm") -> starting.Starts:
        """What an executor starts its jobs by."""
        environ = {
            starting.DIRECTORY_VARIABLE: str(self.directory),
            starting.MODE_VARIABLE: mode,
        }
        return starting.Starts(environ, self._engine)

    def ready(self) -> list[int]:
        """The pids of the fork servers that serve."""
        return [int(path.read_text()) for path in self.directory.glob("*.ready")]

    def wait_until_ready(self, but: int = 0) -> int:
        """Wait for a fork server, other than one that has been seen before; return its pid."""
        return waiting.wait_for(
            lambda: next((pid for pid in self.ready() if pid != but), 0),
            seconds=READY_SECONDS,
            what="a fork server is ready",
        )


@contextlib.contextmanager
def servers(engine: str = ENGINE, **options: Any) -> Iterator[Servers]:
    """Keep fork servers as a worker does; ``options`` are those of the nursery."""
    given = options.pop("environment", None) or environment()
    with (
        tempfile.TemporaryDirectory(prefix="fork-servers-") as path,
        fork_server_keeper.ForkServerKeeper(Path(path), given, engine=engine, **options) as kept,
    ):
        found = Servers(kept, Path(path), engine)
        if options.get("eager", True):
            found.wait_until_ready()
        yield found


class CommandExecutor(process.ProcessExecutor):
    """Starts any command warm, through an engine that turns into it."""

    def run(
        self,
        flow_run: schemas.FlowRun,
        configuration: process.ProcessJobConfiguration,
        started: Callable[[str], None],
    ) -> base.ExecutorResult:
        env = {
            **configuration.env,
            "PYTHONPATH": str(ENGINES),
            "TEST_COMMAND": configuration.command or "",
        }
        warm = configuration.model_copy(update={"command": COMMAND, "env": env})
        return super().run(flow_run, warm, started)


def executor_for(request: pytest.FixtureRequest) -> process.ProcessExecutor:
    """The executor of a fixture with the parameters ``cold`` and ``warm``, and ``servers``."""
    if request.param == "cold":
        return process.ProcessExecutor()
    kept: Servers = request.getfixturevalue("servers")
    return CommandExecutor(kept.starts())
