"""The fork servers that follow each other for one environment, and when one is to be replaced."""

from __future__ import annotations

import contextlib
import math
import os
import subprocess
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Limits:
    """When fork servers are started and replaced. Durations are seconds, sizes bytes."""

    servers: int = 3
    age: float = 6 * 3600.0
    growth: int = 200 * 1024 * 1024
    packages_every: float = 60.0
    # One that dies sooner has died of itself, not of what happened to it.
    quick_death: float = 10.0
    quick_deaths: int = 3
    pause: float = 300.0
    # One run with settings of its own is no reason to import Prefect twice.
    requests: int = 2


@dataclass
class Server:
    """One fork server process. ``size`` is its memory when it was ready, 0 before."""

    process: subprocess.Popen[bytes]
    born: float
    size: int = 0
    packages: int = 0


@dataclass
class Breed:
    """The fork servers, one after another, for one fingerprint.

    ``packages`` is where what the interpreter imports is installed, ``stamp`` what it looked like
    when that was last looked at.
    """

    name: str
    python: str
    settings: Mapping[str, str]
    packages: tuple[str, ...]
    current: Server | None = None
    successor: Server | None = None
    quick_deaths: int = 0
    not_before: float = 0.0
    stamp: int = 0
    stamped: float = -math.inf


def reason_to_replace(
    server: Server, *, now: float, size: int, packages: int, limits: Limits
) -> str | None:
    """Why a fork server that is ready is to be replaced, ``None`` if it may stay."""
    if size - server.size > limits.growth:
        return f"it has grown by {(size - server.size) >> 20} MB"
    if now - server.born > limits.age:
        return "it is old"
    if packages != server.packages:
        return "packages have been installed or removed"
    return None


def own_packages() -> tuple[str, ...]:
    """Where the packages of this very interpreter are."""
    return tuple(sysconfig.get_path(name) for name in ("purelib", "platlib"))


def packages_stamp(packages: Iterable[str]) -> int:
    """Changes whenever a package is installed into or removed from these directories."""
    stamps = []
    for path in packages:
        with contextlib.suppress(OSError):
            stamps.append(Path(path).stat().st_mtime_ns)
    return max(stamps, default=0)


def resident_bytes(pid: int) -> int:
    """How much memory a process has; 0 if it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
