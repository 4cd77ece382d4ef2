"""What an executor is: it starts, watches and kills a flow run's job on one infrastructure."""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from dispatcher.prefect_api import schemas
from executors import configuration as configurations

GRACE_SECONDS = 30.0

# Inside the class below ``type`` is a work pool type.
_Configuration = type[configurations.BaseJobConfiguration]
_Variables = type[configurations.BaseVariables]


@dataclass(frozen=True)
class ExecutorResult:
    """How a job ended.

    ``identifier`` is the infrastructure pid, ``status_code`` the job's exit status (negative for
    a signal). ``reported_state`` is the state type in which the engine itself said it left the
    run; ``None`` where it did not say, so that the run has to be read. ``explanation`` is a
    sentence for the user on what the status code usually means, ``last_lines`` what the job has
    printed last, where its exit code tells how its run ended.
    """

    identifier: str
    status_code: int
    reported_state: schemas.StateType | None = None
    explanation: str | None = None
    last_lines: str = ""


@dataclass(frozen=True)
class NodeOptions:
    """What a worker's settings say about how jobs are started on its node.

    ``start`` is ``auto``, ``warm`` or ``cold``, ``preload`` names modules that jobs shall find
    imported; ``python`` is the interpreter, or its virtual environment, of jobs that name none.
    ``eager`` says that there will be jobs of this type.
    """

    start: str = "auto"
    preload: tuple[str, ...] = ()
    python: str | None = None
    eager: bool = True


class BaseExecutor(abc.ABC):
    """Runs flow runs on one kind of infrastructure (Prefect: a worker type).

    A subclass sets ``type`` and implements :meth:`run`; it registers in the entry-point group
    ``dispatcher.executors``. One instance serves many runs, several at once on a threads pool.
    """

    type: ClassVar[str]
    job_configuration: ClassVar[_Configuration] = configurations.BaseJobConfiguration
    job_configuration_variables: ClassVar[_Variables | None] = None

    _description: ClassVar[str] = ""
    _documentation_url: ClassVar[str] = ""
    _logo_url: ClassVar[str] = ""

    @classmethod
    def get_description(cls) -> str:
        """Return one or two sentences on what the executor runs jobs on."""
        return cls._description

    @classmethod
    def get_documentation_url(cls) -> str:
        """Return where the executor is documented; empty if nowhere."""
        return cls._documentation_url

    @classmethod
    def get_logo_url(cls) -> str:
        """Return the address of the executor's logo; empty if it has none."""
        return cls._logo_url

    @classmethod
    def get_default_base_job_template(cls) -> dict[str, Any]:
        """Return the template for a work pool of this type that has none yet.

        Its variables are those of ``job_configuration_variables``, or else the fields of the
        job configuration itself.
        """
        model = cls.job_configuration_variables or cls.job_configuration
        return {
            "job_configuration": cls.job_configuration.json_template(),
            "variables": configurations.variables_schema(model),
        }

    @classmethod
    def node_services(
        cls,
        options: NodeOptions,  # noqa: ARG003 - for executors that have such services
    ) -> contextlib.AbstractContextManager[None]:
        """Return what has to be there on a worker's node while it executes runs; here nothing.

        Entered once in the main process of a worker, before its pool is started, and left when
        the pool has ended. Instances in pool children may find it by environment variables whose
        names begin with ``DISPATCHER_``, which a job never gets.
        """
        return contextlib.nullcontext()

    @abc.abstractmethod
    def run(
        self,
        flow_run: schemas.FlowRun,
        configuration: Any,
        started: Callable[[str], None],
    ) -> ExecutorResult:
        """Start the job, call ``started(infrastructure_pid)`` once it exists, wait for its end.

        Only if the job is lost before its flow has begun, and another takes its place, is
        ``started`` called again.

        ``configuration`` is a prepared instance of ``job_configuration``. What ``started``
        raises means that the job must not go on: it is stopped and the error passed on.
        """

    def find_infrastructure(
        self,
        flow_run: schemas.FlowRun,  # noqa: ARG002 - here a job ends with its worker
        configuration: Any,  # noqa: ARG002
    ) -> str | None:
        """Return the infrastructure pid of a run's job that has outlived its worker, if it has.

        For executors whose jobs do so, and which can :meth:`adopt` them. Raises
        :class:`~executors.errors.InfrastructureNotAvailable` if that cannot be told from here.
        """
        return None

    def adopt(
        self,
        infrastructure_pid: str,
        configuration: Any,
        started: Callable[[str], None],
    ) -> ExecutorResult:
        """Follow a job that another worker has started to its end, as :meth:`run` does its own.

        Raises :class:`~executors.errors.InfrastructureNotFound` if it is gone.
        """
        raise NotImplementedError(
            f"the {self.type} executor cannot adopt the job {infrastructure_pid}"
        )

    def release(self, infrastructure_pid: str) -> None:
        """Have :meth:`run` or :meth:`adopt` return now; another worker has adopted the job."""
        raise NotImplementedError(
            f"the {self.type} executor cannot leave the job {infrastructure_pid} to others"
        )

    def interrupt_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: Any,
        *,
        reschedule: bool,  # noqa: ARG002 - for executors that can tell the flow
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Stop a job of this process because its worker shuts down, not because of a cancel.

        With ``reschedule`` the run is to be started again, so nothing should end it in Prefect.
        Raises as :meth:`kill_infrastructure`, which this is unless an executor knows better.
        """
        self.kill_infrastructure(infrastructure_pid, configuration, grace_seconds)

    def has_begun(self, infrastructure_pid: str) -> bool:  # noqa: ARG002 - nothing is known here
        """Whether the flow of a job of this process is known to have begun.

        While it has not, the dispatcher may start the run again elsewhere, so a job that is cut
        off from it is stopped. An executor that cannot tell says no.
        """
        return False

    def memory_used(self, infrastructure_pid: str) -> int | None:  # noqa: ARG002 - unknown here
        """The bytes of memory that a job of this process uses; ``None`` if that is not known.

        Asked whenever the lease on the run is renewed, so it must not take long.
        """
        return None

    def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: Any,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        """Stop a job: politely, and by force once ``grace_seconds`` have passed.

        Raises :class:`~executors.errors.InfrastructureNotFound` if the job is gone,
        :class:`~executors.errors.InfrastructureNotAvailable` if it cannot be reached from this
        process, ``NotImplementedError`` if the executor has no means to stop jobs.
        """
        raise NotImplementedError(
            f"the {self.type} executor cannot stop a job by its infrastructure pid"
        )
