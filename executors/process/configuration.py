"""Job configuration of the process executor: the fields of Prefect's ``process`` work pools."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import Field, PrivateAttr

from executors import configuration as configurations
from executors import errors, memory_limits
from executors.process import interpreters, start_modes
from executors.process.engine_control import protocol

# No part of the template, so that they work in every pool, and Prefect's own worker ignores them.
START_VARIABLE = "start"
KILL_ESCAPED_VARIABLE = "kill_escaped"

logger = logging.getLogger(__name__)


class ProcessJobConfiguration(configurations.BaseJobConfiguration):
    """What a run's process is started with."""

    stream_output: bool = Field(default=True)
    working_dir: Path | None = Field(default=None)

    _start: start_modes.Mode | None = PrivateAttr(default=None)
    _kills_escaped: bool = PrivateAttr(default=False)
    _memory_limit: int | None = PrivateAttr(default=None)
    _python: str | None = PrivateAttr(default=None)

    def take_variables(self, values: Mapping[str, Any]) -> None:
        """Take those of our own. Raises as the inherited method does."""
        self._start = _start(values.get(START_VARIABLE))
        self._kills_escaped = _kills_escaped(values.get(KILL_ESCAPED_VARIABLE))
        self._python = _python(values.get(interpreters.PYTHON_VARIABLE))
        self._memory_limit = memory_limits.parse(values.get(memory_limits.LIMIT_VARIABLE))

    @property
    def start(self) -> start_modes.Mode | None:
        """How the run wants to be started, if it says so."""
        return self._start

    @property
    def kills_escaped(self) -> bool:
        """Whether what the flow has moved out of its process group ends with it in any case."""
        return self._kills_escaped

    @property
    def memory_limit(self) -> int | None:
        """How many bytes of memory the run's processes may use together."""
        return self._memory_limit

    @property
    def python(self) -> str:
        """The interpreter that executes the run, unless it has a command of its own."""
        return interpreters.path_of(self._python or os.environ.get(interpreters.PYTHON_SETTING))

    def _base_flow_run_command(self) -> str:
        """Prefect's engine under that interpreter."""
        return shlex.join([self.python, "-m", protocol.ENGINE_MODULE])


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


def _start(value: Any) -> start_modes.Mode | None:
    mode = start_modes.parse(value)
    if mode is None and value is not None:
        logger.warning(
            "The job variable %s is none of %s and is left out of account",
            START_VARIABLE,
            ", ".join(start_modes.MODES),
        )
    return mode


def _python(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value
    raise errors.ConfigurationError(
        f"The job variable {interpreters.PYTHON_VARIABLE!r} is no path of an interpreter."
    )


def _kills_escaped(value: Any) -> bool:
    if value is None or isinstance(value, bool):
        return bool(value)
    logger.warning(
        "The job variable %s is neither true nor false and is left out of account",
        KILL_ESCAPED_VARIABLE,
    )
    return False
