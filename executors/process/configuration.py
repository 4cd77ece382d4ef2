"""Job configuration of the process executor: the fields of Prefect's ``process`` work pools."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from pydantic import Field

from executors import configuration as configurations
from executors.process import protocol


class ProcessJobConfiguration(configurations.BaseJobConfiguration):
    """What a run's process is started with."""

    stream_output: bool = Field(default=True)
    working_dir: Path | None = Field(default=None)

    @staticmethod
    def _base_flow_run_command() -> str:
        """Prefect's engine under the interpreter that runs the worker."""
        return shlex.join([sys.executable, "-m", protocol.ENGINE_MODULE])


class ProcessVariables(configurations.BaseVariables):
    """The job variables of a ``process`` work pool."""

    stream_output: bool = Field(
        default=True,
        description="Whether the worker's standard output shows what flow runs print.",
    )
    working_dir: Path | None = Field(
        default=None,
        title="Working Directory",
        description=(
            "The directory on the worker's host in which flow runs execute. Left empty, each gets "
            "a new temporary one."
        ),
    )
