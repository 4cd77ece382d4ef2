"""Having a run's image on the engine."""

from __future__ import annotations

import logging

import docker
from docker import errors as docker_errors
from docker import utils

from executors import errors
from executors.docker import configuration as configurations
from executors.docker import engine

logger = logging.getLogger(__name__)


def ensure(client: docker.DockerClient, job: configurations.DockerJobConfiguration) -> None:
    """Pull the job's image where its policy says so. Raises LaunchError."""
    policy = job.get_pull_policy()
    present = is_present(client, job.image)
    if policy == "Never" and not present:
        raise errors.LaunchError(
            f"Image {job.image!r} is not on the engine, and the pull policy is 'Never'."
        )
    if policy == "Never" or (policy == "IfNotPresent" and present):
        return
    try:
        pull(client, job)
    except errors.LaunchError as error:
        if policy != "IfPossible" or not present:
            raise
        logger.warning("%s The one that is present is used.", error)


def is_present(client: docker.DockerClient, image: str) -> bool:
    """Whether the engine has an image."""
    try:
        client.images.get(image)
    except docker_errors.NotFound:
        return False
    return True


def pull(client: docker.DockerClient, job: configurations.DockerJobConfiguration) -> None:
    """Log in, if the job has credentials, and pull its image. Raises LaunchError."""
    repository, tag = utils.parse_repository_tag(job.image)
    logger.info("Pulling image %r", job.image)
    try:
        _log_in(client, job.registry_credentials)
        # The low-level call: the other one returns a stale image when the pull fails half-way.
        for line in client.api.pull(repository, tag=tag or "latest", stream=True, decode=True):
            if "error" in line:
                raise errors.LaunchError(_failure(job.image, str(line["error"])))
    except engine.AWAY as error:
        raise errors.LaunchError(_failure(job.image, engine.reason(error))) from None


def _log_in(
    client: docker.DockerClient, credentials: configurations.RegistryCredentials | None
) -> None:
    if credentials is not None:
        client.login(
            username=credentials.username,
            password=credentials.password.get_secret_value(),
            registry=credentials.registry_url,
            reauth=credentials.reauth,
        )


def _failure(image: str, why: str) -> str:
    return (
        f"Image {image!r} could not be pulled: {why}. Check its name, the registry and the "
        "credentials, or have it built on the engine's host."
    )
