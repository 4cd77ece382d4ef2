"""Following a container to its end: what it prints, and how it ends."""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

import docker
import requests
from docker.models.containers import Container

from executors import errors
from executors.docker import containers, engine
from executors.process import exit_codes

# A restarted engine is back by then; its containers may have gone on all the time.
ENGINE_SECONDS = 120.0
RETRY_SECONDS = 1.0
WAIT_SECONDS = 10
# What is left to print when a container has ended comes at once.
OUTPUT_SECONDS = 5.0

KILLED = 137
LOST = -1

Tail = Literal["all"] | int


class Target(Protocol):
    """Where output is written to."""

    def write(self, text: str, /) -> object:
        """Write a part of it."""

    def flush(self) -> object:
        """Have it seen."""


logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class End:
    """How a container ended; ``explanation`` is a sentence for the user."""

    status_code: int
    explanation: str | None


def follow(
    client: docker.DockerClient,
    container_id: str,
    *,
    is_released: Callable[[], bool] = lambda: False,
    on_alive: Callable[[], None] = lambda: None,
    engine_seconds: float = ENGINE_SECONDS,
    sleep: Callable[[float], None] = time.sleep,
    monotonic: Callable[[], float] = time.monotonic,
) -> End:
    """Wait for a container's end, also across a restart of the engine.

    Once it is released, which is seen within ``WAIT_SECONDS``, it is left alone. As often
    ``on_alive`` is called while it goes on.

    Raises:
        errors.ExecutorError: the engine did not come back within ``engine_seconds``.
    """
    status: int | None = None
    away_since: float | None = None
    has_waited = False
    while not is_released():
        try:
            container = containers.get(client, container_id)
            if container is None or containers.has_ended(container):
                return describe(container, status)
            away_since = None
            if has_waited:
                on_alive()
            has_waited = True
            # The engine tells it even where it removes the container at once.
            status = int(container.wait(timeout=WAIT_SECONDS)["StatusCode"])
        except requests.ReadTimeout:
            continue  # it goes on
        except engine.AWAY as error:
            away_since = monotonic() if away_since is None else away_since
            if monotonic() - away_since >= engine_seconds:
                raise errors.ExecutorError(
                    f"The Docker engine has not answered for {engine_seconds:.0f} s "
                    f"({engine.reason(error)}), so nobody knows what became of container "
                    f"{container_id[:12]}."
                ) from None
            sleep(RETRY_SECONDS)
    return End(LOST, "Another worker follows it now.")


def describe(container: Container | None, waited: int | None) -> End:
    """Say how a container ended: what it tells itself, or what waiting for it has told."""
    if container is None:
        if waited is None:
            return End(LOST, "Its container was removed before it could tell how it ended.")
        return End(waited, exit_codes.explain(waited) if waited else None)
    state = container.attrs["State"]
    status = int(state.get("ExitCode", LOST))
    if state.get("OOMKilled") and status != 0:
        return End(status, _out_of_memory(container))
    return End(status, exit_codes.explain(status) if status else None)


def memory_used(client: docker.DockerClient, container_id: str) -> int | None:
    """The bytes that a container uses, less what its files have in the cache; None if not known.

    Docker's own command shows the same number.
    """
    try:
        told = client.api.stats(container_id, stream=False, one_shot=True)["memory_stats"]
        cached = told.get("stats", {})
        return int(told["usage"]) - int(
            cached.get("inactive_file", cached.get("total_inactive_file", 0))
        )
    except (KeyError, requests.RequestException, docker.errors.DockerException):
        return None


def _out_of_memory(container: Container) -> str:
    limit = int(container.attrs.get("HostConfig", {}).get("Memory") or 0)
    if limit:
        return (
            f"It ran out of memory: it may use {limit / 2**20:.0f} MiB. Raise the job variable "
            "mem_limit or memory_limit, or have the flow use less."
        )
    return "It ran out of memory: the host has no more. Set the job variable mem_limit."


@contextlib.contextmanager
def streaming(
    container: Container, target: Target, *, enabled: bool, tail: Tail = "all"
) -> Iterator[None]:
    """Write what a container prints for as long as the block lasts.

    ``tail`` is how many lines of what it has printed before come first.
    """
    if not enabled:
        yield
        return
    thread = threading.Thread(
        target=contextvars.copy_context().run,
        args=(_copy, container, target, tail),
        name="container-output",
        daemon=True,
    )
    thread.start()
    try:
        yield
    finally:
        thread.join(OUTPUT_SECONDS)


def _copy(container: Container, target: Target, tail: Tail) -> None:
    try:
        for chunk in container.logs(stream=True, follow=True, tail=tail):
            target.write(chunk.decode(errors="replace"))
            target.flush()
    except Exception as error:  # noqa: BLE001 - no output is worth a run
        logger.warning(
            "What container %s prints is not shown any more: %s",
            container.name,
            engine.reason(error),
        )
