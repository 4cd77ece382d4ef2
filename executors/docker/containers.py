"""Making, finding and stopping the containers of flow runs."""

from __future__ import annotations

import contextlib
import itertools
import logging
import math
import time
from collections.abc import Callable, Mapping
from typing import Any

import docker
from docker import errors as docker_errors
from docker.models.containers import Container

from executors import errors
from executors.docker import configuration as configurations
from executors.docker import engine

MAX_NAMES = 1000
CHECK_SECONDS = 0.2
# How long after SIGKILL a container may still be there before that is an error.
KILL_SECONDS = 30.0

ENDED = frozenset({"exited", "dead", "removing"})

logger = logging.getLogger(__name__)


def create(client: docker.DockerClient, job: configurations.DockerJobConfiguration) -> Container:
    """Create a job's container, not yet started. Raises LaunchError."""
    try:
        container = _create_under_free_name(client, settings(job))
        for network in job.networks[1:]:  # only one can be given when it is created
            client.networks.get(network).connect(container)
    except (*engine.AWAY, TypeError, ValueError) as error:
        # docker-py says with TypeError that it does not know an argument.
        why = str(error) if isinstance(error, (TypeError, ValueError)) else engine.reason(error)
        raise errors.LaunchError(f"The container could not be created: {why}.") from None
    return container


def settings(job: configurations.DockerJobConfiguration) -> dict[str, Any]:
    """Return the arguments of docker-py's ``containers.create``."""
    fields = type(job).model_fields
    further = {
        name: value
        for name, value in (job.container_create_kwargs or {}).items()
        if name not in fields
    }
    hosts = {**job.get_extra_hosts(), **_hosts(further.pop("extra_hosts", None))}
    # Without a value, a variable of the image is removed.
    environment: dict[str, str | None] = {**dict.fromkeys(job.unset_env), **job.env}
    return {
        "image": job.image,
        "network": job.networks[0] if job.networks else None,
        "network_mode": job.get_network_mode(),
        "command": job.command,
        "environment": environment,
        "auto_remove": job.auto_remove,
        "labels": job.labels,
        "extra_hosts": hosts,
        "name": job.name,
        "volumes": [configurations.absolute_volume(volume) for volume in job.volumes],
        "mem_limit": job.mem_limit,
        "memswap_limit": job.memswap_limit,
        "privileged": job.privileged,
        **further,
    }


def start(container: Container) -> None:
    """Start a created container; one that does not start is removed. Raises LaunchError."""
    try:
        container.start()
    except engine.AWAY as error:
        remove(container)
        raise errors.LaunchError(
            f"The container could not be started: {engine.reason(error)}."
        ) from None


def get(client: docker.DockerClient, container_id: str) -> Container | None:
    """Return a container, running or ended; ``None`` if there is none of this id."""
    try:
        return client.containers.get(container_id)
    except docker_errors.APIError as error:
        if engine.is_gone(error):
            return None
        raise


def has_ended(container: Container) -> bool:
    """Whether nothing runs in a container any more, as it was when it was last read."""
    return container.status in ENDED


def find_running(client: docker.DockerClient, flow_run_id: str) -> Container | None:
    """Return the newest container of a run that still runs; found by its label."""
    label = f"{configurations.FLOW_RUN_LABEL}={flow_run_id}"
    found = client.containers.list(filters={"label": label}, ignore_removed=True)
    return next((each for each in found if not has_ended(each)), None)


def remove(container: Container) -> None:
    """Remove a container, whatever runs in it. Never raises: somebody else may be quicker."""
    with contextlib.suppress(*engine.AWAY):
        container.remove(force=True, v=True)


def wait_until_ended(
    container: Container,
    seconds: float,
    *,
    monotonic: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> bool:
    """Wait until a container has ended or is gone; whether it has within the time."""
    deadline = monotonic() + seconds
    while True:
        try:
            container.reload()
        except docker_errors.APIError as error:
            if engine.is_gone(error):
                return True
            raise
        if has_ended(container):
            return True
        if monotonic() >= deadline:
            return False
        sleep(CHECK_SECONDS)


def terminate(container: Container, grace_seconds: float) -> None:
    """Ask a container to end and wait for that; the engine kills it after the grace."""
    with contextlib.suppress(docker_errors.APIError):  # it has ended by itself
        container.stop(timeout=math.ceil(grace_seconds))


def kill(container: Container) -> None:
    """Kill a container and wait for its end. Raises ExecutorError if it survives."""
    with contextlib.suppress(docker_errors.APIError):  # it has ended by itself
        container.kill()
    if not wait_until_ended(container, KILL_SECONDS):
        raise errors.ExecutorError(
            f"Container {container.name} did not end within {KILL_SECONDS:.0f} s after SIGKILL."
        )


def _create_under_free_name(client: docker.DockerClient, given: dict[str, Any]) -> Container:
    """Create a container; a taken name gets a number, as of a run that is started again."""
    wanted = given.pop("name")
    for index in itertools.count():
        name = f"{wanted}-{index}" if index else wanted
        try:
            return client.containers.create(name=name, **given)
        except docker_errors.APIError as error:
            if not _is_name_taken(error) or index >= MAX_NAMES:
                raise
    raise AssertionError


def _is_name_taken(error: docker_errors.APIError) -> bool:
    text = str(error)
    return "Conflict" in text and "container name" in text


def _hosts(given: Any) -> Mapping[str, str]:
    """Read ``extra_hosts`` in either of docker-py's forms."""
    if isinstance(given, list):
        pairs = (entry.partition(":") for entry in given)
        return {name: address for name, colon, address in pairs if colon}
    return given or {}
