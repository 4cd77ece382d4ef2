"""The Docker engine: reaching it, and saying clearly what it answers."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import docker
import requests
from docker import errors as docker_errors

from executors import errors

# Prefect's own variable for it.
TIMEOUT_VARIABLE = "DOCKER_CLIENT_TIMEOUT"
TIMEOUT_SECONDS = 60
LOCAL_SOCKET = "unix:///var/run/docker.sock"

# What docker-py raises when the engine is away, or goes away.
AWAY = (requests.ConnectionError, requests.Timeout, docker_errors.DockerException)


class EngineAway(Exception):
    """The Docker engine cannot be reached."""


@contextlib.contextmanager
def connect() -> Iterator[docker.DockerClient]:
    """A client of the engine that the environment names (``DOCKER_HOST`` and so on).

    Each call makes its own: docker-py's client is neither made for threads nor for forks.

    Raises:
        EngineAway: nobody answers.
    """
    timeout = int(os.environ.get(TIMEOUT_VARIABLE, TIMEOUT_SECONDS))
    try:
        _knock()
        client = docker.from_env(timeout=timeout)
    except (OSError, *AWAY) as error:
        raise EngineAway(
            f"The Docker engine at {address()} does not answer: {reason(error)}. Start it, let the "
            "worker's user use its socket, or set DOCKER_HOST on the worker."
        ) from None
    with contextlib.closing(client):
        yield client


@contextlib.contextmanager
def failing_as(kind: type[errors.ExecutorError]) -> Iterator[None]:
    """Raise what the engine refuses, or its absence, as an error of executors."""
    try:
        yield
    except EngineAway as error:
        raise kind(str(error)) from None
    except AWAY as error:
        raise kind(f"The Docker engine failed: {reason(error)}.") from None


def address() -> str:
    """Where the engine is, for messages."""
    return os.environ.get("DOCKER_HOST") or LOCAL_SOCKET


def _knock() -> None:
    """Connect to a local socket and hang up; docker-py forgets to where it cannot connect."""
    scheme, _, path = address().partition("://")
    if scheme == "unix":
        with socket.socket(socket.AF_UNIX) as connection:
            connection.connect(path)


def reason(error: BaseException) -> str:
    """Say in a few words why a request failed, without what was sent."""
    if isinstance(error, docker_errors.APIError):
        return str(error.explanation or error.response).strip().rstrip(".")
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return type(error).__name__


def is_gone(error: docker_errors.APIError) -> bool:
    """Whether a container does not exist; Podman says so with another status than Docker."""
    return isinstance(error, docker_errors.NotFound) or "no such container" in str(error).lower()
