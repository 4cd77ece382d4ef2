"""How a job is started: warm where that is the same thing, else cold."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from executors.process import interpreters, jobs, start_modes
from executors.process import launch as launching
from executors.process.cold import cold_process
from executors.process.engine_control import protocol
from executors.process.fork_server import wire
from executors.process.warm import fingerprint, warm_process

# Set by the worker for its pool children; neither ever reaches a job.
MODE_VARIABLE = "DISPATCHER_START"
DIRECTORY_VARIABLE = "DISPATCHER_FORK_SERVERS"

# Where in that directory who listens.
NURSERY = "nursery.sock"
GUARD = "guard.sock"
SERVER_SUFFIX = ".sock"

# How long a run that insists on a warm start waits for its fork server.
PATIENCE_SECONDS = 30.0
POLL_SECONDS = 0.1
REQUEST_SECONDS = 1.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Plan:
    """How a job is to be started, and why so."""

    warm: bool
    reason: str


def plan_start(
    *,
    mode: start_modes.Mode,
    served: bool,
    is_default_command: bool,
    can_be_warm: bool,
    has_settings_file: bool,
    has_relative_path: bool,
) -> Plan:
    """Decide how to start a job; warm only where it cannot be told from a cold one."""
    hindrances = (
        (mode == "cold", "that is the setting"),
        (not served, "this worker has no fork server"),
        (not is_default_command, "its command is not the default one"),
        (not can_be_warm, "its interpreter or its Prefect is too old"),
        (has_settings_file, "its working directory has settings of Prefect's"),
        (has_relative_path, "its PYTHONPATH depends on its working directory"),
    )
    for hinders, reason in hindrances:
        if hinders:
            return Plan(False, reason)
    return Plan(True, "the fork server does the same")


class Starts:
    """Starts jobs for one executor. Thread-safe.

    ``environ`` is where the worker has put how and where, this process' environment; ``engine``
    the module that a fork server of this worker executes.
    """

    def __init__(
        self, environ: Mapping[str, str] = os.environ, engine: str = protocol.ENGINE_MODULE
    ) -> None:
        self._environ = environ
        self._engine = engine

    @contextlib.contextmanager
    def started(
        self, launch: launching.Launch, mode: start_modes.Mode | None, *, fresh_directory: bool
    ) -> Iterator[jobs.Process]:
        """Start a job. Raises LaunchError.

        ``mode`` is what the job itself says. If this process dies within the block, nothing of
        the job is left.
        """
        plan = self.plan(launch, mode, fresh_directory=fresh_directory)
        process = self.start_warm(launch, mode) if plan.warm else None
        if process is not None:
            yield process
            return
        reason = "no fork server has its settings yet" if plan.warm else plan.reason
        logger.debug("Job %s is started cold: %s", launch.job_id, reason)
        directory = self._directory
        with warm_process.guarded(launch.job_id, directory / GUARD if directory else None):
            yield cold_process.start(launch)

    def plan(
        self, launch: launching.Launch, mode: start_modes.Mode | None, *, fresh_directory: bool
    ) -> Plan:
        """Decide how to start a job; ``mode`` is what the job itself says. Raises LaunchError."""
        python = launch.argv[0]
        is_default = launch.argv[1:] == ("-m", self._engine) and Path(python).is_absolute()
        can_be_warm = True
        if is_default and python != sys.executable:
            found = interpreters.examine(python, self._engine, launch.environment)
            can_be_warm = found.can_be_warm
        return plan_start(
            mode=mode or self._mode,
            served=self._directory is not None,
            is_default_command=is_default,
            can_be_warm=can_be_warm,
            has_settings_file=(
                not fresh_directory and fingerprint.has_settings_file(launch.directory)
            ),
            has_relative_path=fingerprint.has_relative_path(launch.environment),
        )

    def start_warm(
        self, launch: launching.Launch, mode: start_modes.Mode | None
    ) -> warm_process.WarmProcess | None:
        """Start a job as a fork; ``None`` if no fork server for its settings is there (yet).

        One is asked for then. Raises LaunchError.
        """
        assert self._directory is not None
        name = fingerprint.of(launch.environment, launch.argv[0])
        server = self._directory / f"{name}{SERVER_SUFFIX}"
        insists = (mode or self._mode) == "warm"
        deadline = time.monotonic() + (PATIENCE_SECONDS if insists else 0.0)
        asked = False
        while True:
            try:
                return warm_process.start(launch, server)
            except warm_process.NotServedError as error:
                if not asked:
                    logger.debug("No fork server for job %s: %s", launch.job_id, error)
                    self._ask_for(name, launch, urgent=insists)
                    asked = True
            if time.monotonic() >= deadline:
                break
            time.sleep(POLL_SECONDS)
        if insists:
            logger.warning("A job that was to be started warm is started cold: no fork server came")
        return None

    @property
    def _mode(self) -> start_modes.Mode:
        return start_modes.parse(self._environ.get(MODE_VARIABLE)) or "auto"

    @property
    def _directory(self) -> Path | None:
        said = self._environ.get(DIRECTORY_VARIABLE)
        return Path(said) if said and sys.platform == "linux" else None

    def _ask_for(self, name: str, launch: launching.Launch, *, urgent: bool) -> None:
        assert self._directory is not None
        request = {
            "name": name,
            "python": launch.argv[0],
            "settings": fingerprint.settings_of(launch.environment),
            "urgent": urgent,
        }
        with (
            contextlib.suppress(OSError),
            wire.connect(self._directory / NURSERY, REQUEST_SECONDS) as connection,
        ):
            wire.send(connection, request)
