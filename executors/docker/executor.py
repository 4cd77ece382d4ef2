"""The docker executor: each flow run is a container of a Docker engine."""

from __future__ import annotations

import contextlib
import logging
import re
import sys
from collections.abc import Callable, Iterator

import docker
from docker.models.containers import Container

from dispatcher.prefect_api import schemas
from executors import base, errors, exit_reports
from executors.docker import configuration as configurations
from executors.docker import containers, engine, images, watching

# Prefect's launcher sees by itself that its run is to be cancelled, at the latest after 10 s, and
# then runs the flow's hooks; this is what it gets for that, of the grace at the most.
LAUNCHER = re.compile(r"\bprefect\s+flow-run\s+execute\b")
LAUNCHER_SECONDS = 20.0
# A bare engine makes a crash of SIGTERM, even if its run is being cancelled.
ENGINE = re.compile(r"-m\s+prefect\.engine\b")

# Of what a container printed while nobody watched.
ADOPTED_LINES = 100

logger = logging.getLogger(__name__)


class DockerExecutor(base.BaseExecutor):
    """Runs flow runs as containers; serves the same work pools as Prefect's docker worker.

    Thread-safe. Whatever makes :meth:`run` raise, the container is removed first; one that ended
    stays, unless the job variable ``auto_remove`` says otherwise. A container outlives its
    worker, so another one may adopt it.
    """

    type = "docker"
    job_configuration = configurations.DockerJobConfiguration

    _description = "Runs each flow run as a container of a Docker engine."
    _documentation_url = "https://docs.prefect.io/integrations/prefect-docker"

    def __init__(self) -> None:
        self._released: set[str] = set()
        self._memory: dict[str, int | None] = {}

    def run(
        self,
        flow_run: schemas.FlowRun,  # noqa: ARG002 - the configuration says it all
        configuration: configurations.DockerJobConfiguration,
        started: Callable[[str], None],
    ) -> base.ExecutorResult:
        """Run a container to its end.

        ``started`` gets ``<address of the engine>:<container id>``, as Prefect's docker worker
        writes it. Raises LaunchError if there is no engine, no image or no container.
        """
        with engine.failing_as(errors.LaunchError), engine.connect() as client:
            images.ensure(client, configuration)
            container = containers.create(client, configuration)
            logger.info("Container %s created", container.name)
            containers.start(container)
            return self._watch(client, container, configuration, started)

    def find_infrastructure(
        self,
        flow_run: schemas.FlowRun,
        configuration: configurations.DockerJobConfiguration,  # noqa: ARG002 - labels do
    ) -> str | None:
        """Return the infrastructure pid of a run's container that outlived its worker.

        One that has ended counts if the run is Running: then it is that attempt's, and nobody has
        told how it ended. Raises InfrastructureNotAvailable if there is no engine here.
        """
        with reach_engine() as client:
            known = _known(client, flow_run.infrastructure_pid)
            if known is not None and (_is_running(flow_run) or not containers.has_ended(known)):
                return make_pid(client, known)
            found = containers.find_running(client, str(flow_run.id))
            return None if found is None else make_pid(client, found)

    def adopt(
        self,
        infrastructure_pid: str,
        configuration: configurations.DockerJobConfiguration,
        started: Callable[[str], None],
    ) -> base.ExecutorResult:
        """Follow a container that another worker has started, as :meth:`run` does with its own.

        Raises InfrastructureNotFound if it is gone, and as :meth:`kill_infrastructure`.
        """
        with reach_engine() as client:
            container = find(client, infrastructure_pid)
            logger.info("Container %s adopted", container.name)
            return self._watch(client, container, configuration, started, tail=ADOPTED_LINES)

    def release(self, infrastructure_pid: str) -> None:
        """Have the call that follows a container return, and leave the container alone."""
        self._released.add(infrastructure_pid)

    def memory_used(self, infrastructure_pid: str) -> int | None:
        """The bytes that a container of this process used when it was last looked at."""
        return self._memory.get(infrastructure_pid)

    def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: configurations.DockerJobConfiguration,
        grace_seconds: float = base.GRACE_SECONDS,
    ) -> None:
        """Stop a container; return when it has ended. May be repeated.

        Prefect's own launcher gets a part of the grace to cancel its run itself, with its hooks.
        Raises InfrastructureNotFound, InfrastructureNotAvailable for a container of another
        engine, and ExecutorError for one that survives SIGKILL.
        """
        own = LAUNCHER.search(configuration.command or "")
        alone_seconds = min(LAUNCHER_SECONDS, grace_seconds / 2) if own else 0.0
        self._stop(infrastructure_pid, configuration, grace_seconds, alone_seconds)

    def interrupt_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: configurations.DockerJobConfiguration,
        *,
        reschedule: bool,
        grace_seconds: float = base.GRACE_SECONDS,
    ) -> None:
        """Stop a container because its worker shuts down; raises as :meth:`kill_infrastructure`.

        To be re-scheduled it is killed, since an engine makes a crash of anything else.
        """
        grace_seconds = 0.0 if reschedule else grace_seconds
        self._stop(infrastructure_pid, configuration, grace_seconds, alone_seconds=0.0)

    def _stop(
        self,
        infrastructure_pid: str,
        configuration: configurations.DockerJobConfiguration,
        grace_seconds: float,
        alone_seconds: float,
    ) -> None:
        with reach_engine() as client:
            container = find(client, infrastructure_pid)
            if containers.has_ended(container):
                raise errors.InfrastructureNotFound(f"Container {container.name} has ended.")
            if containers.wait_until_ended(container, alone_seconds):
                return
            left = grace_seconds - alone_seconds
            if left > 0 and not ENGINE.search(configuration.command or ""):
                containers.terminate(container, left)
            containers.kill(container)

    def _watch(
        self,
        client: docker.DockerClient,
        container: Container,
        configuration: configurations.DockerJobConfiguration,
        started: Callable[[str], None],
        *,
        tail: watching.Tail = "all",
    ) -> base.ExecutorResult:
        """Follow a container to its end; it is removed if anything raises meanwhile."""
        identifier = make_pid(client, container)

        def measure() -> None:
            self._memory[identifier] = watching.memory_used(client, str(container.id))

        lines = exit_reports.Lines() if configuration.reports_exit_code else None
        with watching.streaming(
            container, lines or sys.stdout, enabled=configuration.stream_output, tail=tail
        ):
            try:
                started(identifier)
                end = watching.follow(
                    client,
                    str(container.id),
                    is_released=lambda: identifier in self._released,
                    on_alive=measure,
                )
            except BaseException:
                containers.remove(container)
                raise
            finally:
                self._released.discard(identifier)
                self._memory.pop(identifier, None)
        if lines is None:
            return base.ExecutorResult(identifier, end.status_code, explanation=end.explanation)
        return base.ExecutorResult(
            identifier,
            end.status_code,
            explanation=exit_reports.explanation(end.status_code, end.explanation),
            last_lines=lines.last(),
        )


@contextlib.contextmanager
def reach_engine() -> Iterator[docker.DockerClient]:
    """A client of the engine. Raises InfrastructureNotAvailable if there is none here."""
    with engine.failing_as(errors.InfrastructureNotAvailable), engine.connect() as client:
        yield client


def make_pid(client: docker.DockerClient, container: Container) -> str:
    """Write a container's infrastructure pid as Prefect's docker worker does."""
    return f"{client.api.base_url}:{container.id}"


def find(client: docker.DockerClient, infrastructure_pid: str) -> Container:
    """Return the container of an infrastructure pid.

    Raises InfrastructureNotFound if it is gone, InfrastructureNotAvailable for another engine's.
    """
    base_url, colon, container_id = infrastructure_pid.rpartition(":")
    if not colon or not container_id:
        raise errors.InfrastructureNotFound(
            f"{infrastructure_pid!r} is no container: '<engine>:<container id>' was expected."
        )
    if base_url != client.api.base_url:
        raise errors.InfrastructureNotAvailable(
            f"Container {container_id[:12]} is on the engine {base_url}, and this is "
            f"{client.api.base_url}."
        )
    container = containers.get(client, container_id)
    if container is None:
        raise errors.InfrastructureNotFound(f"Container {container_id[:12]} is gone.")
    return container


def _known(client: docker.DockerClient, infrastructure_pid: str | None) -> Container | None:
    try:
        return find(client, infrastructure_pid) if infrastructure_pid else None
    except (errors.InfrastructureNotFound, errors.InfrastructureNotAvailable):
        return None


def _is_running(flow_run: schemas.FlowRun) -> bool:
    return flow_run.state is not None and flow_run.state.type is schemas.StateType.RUNNING
