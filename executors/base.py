"""What an executor is: it starts, watches and kills a flow run's job on one infrastructure."""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from dispatcher.api import schemas
from executors import configuration as configurations

GRACE_SECONDS = 30.0


@dataclass(frozen=True)
class ExecutorResult:
    """How a job ended.

    ``identifier`` is the infrastructure pid, ``status_code`` the job's exit status (negative for
    a signal). ``reported_state`` is the state type in which the engine itself said it left the
    run; ``None`` where it did not say, so that the run has to be read.
    """

    identifier: str
    status_code: int
    reported_state: schemas.StateType | None = None


class BaseExecutor(abc.ABC):
    """Runs flow runs on one kind of infrastructure (Prefect: a worker type).

    A subclass sets ``type`` and implements :meth:`run`; it registers in the entry-point group
    ``dispatcher.executors``. One instance serves many runs, several at once on a threads pool.
    """

    type: ClassVar[str]
    job_configuration: ClassVar[type[configurations.BaseJobConfiguration]] = (
        configurations.BaseJobConfiguration
    )
    job_configuration_variables: ClassVar[type[configurations.BaseVariables] | None] = None

    _description: ClassVar[str] = ""
    _documentation_url: ClassVar[str] = ""
    _logo_url: ClassVar[str] = ""

    @abc.abstractmethod
    def run(
        self,
        flow_run: schemas.FlowRun,
        configuration: Any,
        started: Callable[[str], None],
    ) -> ExecutorResult:
        """Start the job, call ``started(infrastructure_pid)`` once it exists, wait for its end."""

    def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: Any,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Stop a job: politely, and by force once ``grace_seconds`` have passed."""
        raise NotImplementedError
