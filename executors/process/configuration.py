"""Job configuration of the process executor: the fields of Prefect's ``process`` work pools."""

from __future__ import annotations

import logging
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import Field, PrivateAttr

from executors import configuration as configurations
from executors import templates
from executors.process import modes, protocol

# No part of the template, so that it works in every pool, and Prefect's own worker ignores it.
START_VARIABLE = "start"

logger = logging.getLogger(__name__)


class ProcessJobConfiguration(configurations.BaseJobConfiguration):
    """What a run's process is started with."""

    stream_output: bool = Field(default=True)
    working_dir: Path | None = Field(default=None)

    _start: modes.Mode | None = PrivateAttr(default=None)

    @classmethod
    def from_template_and_values(
        cls,
        base_job_template: Mapping[str, Any],
        values: Mapping[str, Any],
        reader: templates.ReferenceReader,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Build the configuration, with the job variable ``start`` besides what is in a template.

        Raises as the inherited method does.
        """
        made = super().from_template_and_values(base_job_template, values, reader, environ=environ)
        made._start = _start(values.get(START_VARIABLE))
        return made

    @property
    def start(self) -> modes.Mode | None:
        """How the run wants to be started, if it says so."""
        return self._start

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


def _start(value: Any) -> modes.Mode | None:
    mode = modes.parse(value)
    if mode is None and value is not None:
        logger.warning(
            "The job variable %s is none of %s and is left out of account",
            START_VARIABLE,
            ", ".join(modes.MODES),
        )
    return mode
