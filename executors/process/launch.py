"""What a job is started with, whichever way it is started."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from executors import errors
from executors.process import configuration as configurations
from executors.process import protocol

# Marks every process of one launch, also those that left its session.
JOB_ID_VARIABLE = "DISPATCHER_JOB_ID"

# What is set for the dispatcher itself: broker and backend URLs hold a password.
OWN_PREFIXES = ("CELERY_", "DISPATCHER_", "FLOWER_")


@dataclass(frozen=True)
class Launch:
    """One start of one job. The environment may hold secrets and is in no repr."""

    job_id: str
    argv: tuple[str, ...]
    directory: Path
    environment: Mapping[str, str] = field(repr=False)
    stream_output: bool = True

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
    added: Mapping[str, str],
) -> dict[str, str]:
    """What is inherited, less the dispatcher's own and the unset, under what the job sets."""
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith(OWN_PREFIXES) and name not in configuration.unset_env
    }
    own = {name: value for name, value in configuration.env.items() if value is not None}
    return {**kept, **own, **added}
