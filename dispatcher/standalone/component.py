"""What the supervisor must know of one process of the stack."""

from __future__ import annotations

import dataclasses
import signal
from collections.abc import Callable, Mapping
from pathlib import Path


def _nothing() -> None:
    """Prepare nothing."""


@dataclasses.dataclass(frozen=True)
class StopStep:
    """A signal, and how many seconds the process has to end after it."""

    signal: signal.Signals
    seconds: float


@dataclasses.dataclass(frozen=True)
class Component:
    """One process: how it is started, when it is ready, how it is stopped.

    ``needs`` names the components that must be ready first. ``prepare`` is called before each
    start. ``is_ready`` must answer within a second or so; neither of the two raises. After the
    last step of ``stop`` the process is killed with all its descendants.
    """

    name: str
    command: tuple[str, ...]
    environment: Mapping[str, str] = dataclasses.field(repr=False)  # carries the Redis password
    directory: Path
    is_ready: Callable[[], bool]
    ready_seconds: float
    stop: tuple[StopStep, ...]
    needs: tuple[str, ...] = ()
    prepare: Callable[[], None] = _nothing
    address: str = ""
