"""What a job is started with, whichever way it is started."""

from __future__ import annotations

import os
import shlex
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from executors import errors
from executors.process import configuration as configurations
from executors.process.cleanup import job_marks
from executors.process.engine_control import protocol

JOB_ID_VARIABLE = job_marks.JOB_ID_VARIABLE

# What is set for the dispatcher itself: broker and backend URLs hold a password.
OWN_PREFIXES = ("CELERY_", "DISPATCHER_", "FLOWER_")


@dataclass(frozen=True)
class Launch:
    """One start of one job. The environment may hold secrets and is in no repr.

    ``kills_escaped`` has what the flow moved out of its process group end with it, however it ends.
    ``cgroup`` is the control group that the job joins before it begins. Captured output is the
    launcher's to read.
    """

    job_id: str
    argv: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str] = field(repr=False)
    stream_output: bool = True
    kills_escaped: bool = False
    cgroup: Path | None = None
    captures_output: bool = False

    @property
    def is_engine(self) -> bool:
        """Whether the command is Prefect's engine, directly or through a wrapper such as uv."""
        return any(protocol.ENGINE_MODULE in argument for argument in self.argv)


def split_command(command: str | None) -> tuple[str, ...]:
    """The words of a shell-quoted command line. Raises LaunchError."""
    try:
        argv = tuple(shlex.split(command or ""))
    except ValueError as error:
        raise errors.LaunchError(
            f"The job's command cannot be split into words: {error}. Mend its quoting."
        ) from None
    if not argv:
        raise errors.LaunchError("The job has no command.")
    return argv


def job_environment(
    configuration: configurations.ProcessJobConfiguration,
    inherited: Mapping[str, str],
) -> dict[str, str]:
    """What is inherited, less the dispatcher's own and the unset, under what the job sets."""
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(OWN_PREFIXES) and name not in configuration.unset_env
    }
    own = {name: value for name, value in configuration.env.items() if value is not None}
    return {**kept, **own}


def check_startable(launch: Launch) -> None:
    """Find out now what else would be known only from the exit status. Raises LaunchError."""
    if not launch.directory.is_dir():
        raise errors.LaunchError(
            f"The job's working directory {str(launch.directory)!r} does not exist on this host."
        )
    name = launch.argv[0]
    if "/" in name:
        check_executable(launch.directory / name, name)
    elif shutil.which(name, path=launch.environment.get("PATH", os.defpath)) is None:
        raise errors.LaunchError(
            f"The job's command {name!r} was not found on this host "
            "(the PATH of the job's environment was searched)."
        )


def check_executable(program: Path, name: str) -> None:
    """Raise LaunchError unless the program is there and may be run."""
    if not program.is_file():
        raise errors.LaunchError(f"The job's command {name!r} does not exist on this host.")
    if not os.access(program, os.X_OK):
        raise errors.LaunchError(f"The job's command {name!r} is not executable.")
