"""The process executor: each flow run is a process on the worker's own host."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import socket
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from dispatcher.prefect_api import schemas
from executors import base, errors, exit_reports
from executors.process import configuration as configurations
from executors.process import exit_codes, interpreters, job_directory, jobs, start_modes, starting
from executors.process import launch as launching
from executors.process.cleanup import escaped_processes, job_records
from executors.process.engine_control import control
from executors.process.memory import cgroups, memory_hold, oom_scores
from executors.process.warm import fork_server_keeper

logger = logging.getLogger(__name__)


class ProcessExecutor(base.BaseExecutor):
    """Runs flow runs as processes; serves the same work pools as Prefect's process worker.

    Thread-safe. Whatever makes :meth:`run` raise, the job is killed first.
    """

    type = "process"
    job_configuration = configurations.ProcessJobConfiguration
    job_configuration_variables = configurations.ProcessVariables

    _description = "Runs each flow run as a process on the host of the Celery worker."
    _documentation_url = "https://docs.prefect.io/v3/concepts/workers"

    def __init__(
        self,
        starts: starting.Starts | None = None,
        records: job_records.JobRecords | None = None,
    ) -> None:
        self._host = socket.gethostname()
        self._starts = starts or starting.Starts()
        self._records = records or job_records.JobRecords()
        self._jobs: dict[str, jobs.Job] = {}

    def run(
        self,
        flow_run: schemas.FlowRun,  # noqa: ARG002 - the configuration says it all
        configuration: configurations.ProcessJobConfiguration,
        started: Callable[[str], None],
    ) -> base.ExecutorResult:
        """Execute a run's job and wait for its end.

        ``started`` gets ``<host>:<pid>``, as Prefect's process worker writes it; once more if a
        warm job is lost with its fork server before its flow has begun, which is then started
        cold. After a stop, too, this returns normally; an engine that was cancelled reports no
        state, so that the run has to be read. Raises LaunchError if the job could not be started.
        """
        mode = "cold" if configuration.reports_exit_code else configuration.start
        result = self._execute(configuration, started, mode)
        if result is None:
            logger.warning("A fork server died under a job that had not begun: it is started cold")
            result = self._execute(configuration, started, "cold")
        assert result is not None  # a cold job is never lost
        return result

    def _execute(
        self,
        configuration: configurations.ProcessJobConfiguration,
        started: Callable[[str], None],
        mode: start_modes.Mode | None,
    ) -> base.ExecutorResult | None:
        """Execute a job once; ``None`` if it is to be replaced by another."""
        with job_directory.working_directory(configuration.working_dir) as path:
            connection = open_control()
            with connection, self._job(configuration, path, connection, mode) as (identifier, job):
                with exit_reports.following(job.output) as output:
                    started(identifier)
                    status = job.wait()
                explanation = exit_codes.explain(status)
                if configuration.reports_exit_code:
                    explanation = exit_reports.explanation(status, explanation)
                explanation = job.explain_excess() or explanation
        if job.is_to_be_replaced:
            return None
        return base.ExecutorResult(
            identifier, status, connection.reported_state, explanation, output.last()
        )

    @classmethod
    @contextlib.contextmanager
    def node_services(cls, options: base.NodeOptions) -> Iterator[None]:
        """Keep fork servers for the jobs of this worker, and end what killed workers left here.

        When memory is short, the kernel is to kill a flow rather than the worker. All of it is
        Linux's alone.
        """
        with contextlib.ExitStack() as kept:
            if sys.platform == "linux":
                oom_scores.be_last()
                kept.enter_context(cgroups.prepared())
                kept.enter_context(job_records.sweeping(job_records.JobRecords()))
            kept.enter_context(fork_server_keeper.serving(options))
            yield

    def has_begun(self, infrastructure_pid: str) -> bool:
        """Whether the job's engine has connected, which it does when its flow begins."""
        job = self._jobs.get(infrastructure_pid)
        return job is not None and job.engine_seen

    def memory_used(self, infrastructure_pid: str) -> int | None:
        """The bytes that a job's processes used together when they were last measured."""
        job = self._jobs.get(infrastructure_pid)
        return None if job is None else job.memory_used

    def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: configurations.ProcessJobConfiguration,
        grace_seconds: float = base.GRACE_SECONDS,
    ) -> None:
        """Stop a job of this host; return when nothing is left of it. May be repeated.

        A job of this executor's own that executes Prefect's engine is cancelled by it, with its
        hooks. Raises InfrastructureNotFound, InfrastructureNotAvailable for another host's job,
        and ExecutorError for one that survives SIGKILL.
        """
        self._stop(infrastructure_pid, configuration, grace_seconds, "cancel")

    def interrupt_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: configurations.ProcessJobConfiguration,
        *,
        reschedule: bool,
        grace_seconds: float = base.GRACE_SECONDS,
    ) -> None:
        """Stop a job because its worker shuts down; raises as :meth:`kill_infrastructure`.

        To be re-scheduled, an engine is asked to leave its run alone. Otherwise it reports a
        crash and runs its hooks, as Prefect's engine does at every SIGTERM.
        """
        ending: jobs.Ending = "reschedule" if reschedule else "crash"
        self._stop(infrastructure_pid, configuration, grace_seconds, ending)

    def _stop(
        self,
        infrastructure_pid: str,
        configuration: configurations.ProcessJobConfiguration,
        grace_seconds: float,
        ending: jobs.Ending,
    ) -> None:
        host, pid = parse_infrastructure_pid(infrastructure_pid)
        if host != self._host:
            raise errors.InfrastructureNotAvailable(
                f"Process {pid} runs on host {host!r}; it can be killed there only, "
                f"and this is {self._host!r}."
            )
        job = self._jobs.get(infrastructure_pid)
        if job is not None:
            job.stop(grace_seconds, ending)
        else:
            flow_run_id = configuration.env.get(escaped_processes.FLOW_RUN_ID_VARIABLE)
            escaped_processes.kill(pid, flow_run_id, grace_seconds)

    @contextlib.contextmanager
    def _job(
        self,
        configuration: configurations.ProcessJobConfiguration,
        path: Path,
        connection: control.ControlSocket,
        mode: start_modes.Mode | None,
    ) -> Iterator[tuple[str, jobs.Job]]:
        """Start the job and know it by its pid for as long as it lives."""
        launch = build_launch(configuration, path, connection)
        fresh = configuration.working_dir is None
        with (
            memory_hold.holding(configuration.memory_limit, launch.job_id) as hold,
            self._records.recorded(launch.job_id),
            self._starts.started(
                dataclasses.replace(launch, cgroup=hold.cgroup), mode, fresh_directory=fresh
            ) as process,
        ):
            job = jobs.Job(launch, process, connection, hold)
            identifier = f"{self._host}:{job.pid}"
            self._jobs[identifier] = job
            with hold.watching(job.searched_members, job.kill):
                try:
                    yield identifier, job
                finally:
                    job.end()
                    del self._jobs[identifier]


def build_launch(
    configuration: configurations.ProcessJobConfiguration,
    path: Path,
    connection: control.ControlSocket,
) -> launching.Launch:
    """What to start for a run: its command and environment, marked as this launch's own."""
    job_id = uuid.uuid4().hex
    environment = launching.job_environment(configuration, os.environ)
    added = {launching.JOB_ID_VARIABLE: job_id, **connection.environment}
    return launching.Launch(
        job_id=job_id,
        argv=launching.split_command(configuration.command),
        directory=path,
        environment=interpreters.activated(environment, configuration.python) | added,
        stream_output=configuration.stream_output,
        kills_escaped=configuration.kills_escaped,
        captures_output=configuration.reports_exit_code and configuration.stream_output,
    )


def open_control() -> control.ControlSocket:
    """Open a control socket. Raises LaunchError."""
    try:
        return control.ControlSocket()
    except OSError as error:
        raise errors.LaunchError(
            f"The job's control socket could not be opened: {error.strerror}."
        ) from None


def parse_infrastructure_pid(infrastructure_pid: str) -> tuple[str, int]:
    """Split ``<host>:<pid>``. Raises InfrastructureNotFound for anything else."""
    host, _, pid = infrastructure_pid.rpartition(":")
    if not host or not pid.isdecimal() or int(pid) == 0:
        raise errors.InfrastructureNotFound(
            f"{infrastructure_pid!r} is no process: '<host>:<pid>' was expected."
        )
    return host, int(pid)
