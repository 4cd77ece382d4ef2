"""The ports of the stack, chosen once and remembered, so that a restart keeps every URL."""

from __future__ import annotations

import contextlib
import json
import socket
from pathlib import Path

from dispatcher.standalone import errors

LOOPBACK = "127.0.0.1"


class Ports:
    """Ports by component name, kept in a JSON file."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ports = self._read()

    def choose(self, name: str, *, asked: int | None, preferred: int | None = None) -> int:
        """Return the port that the user asked for, else the remembered one, else a free one.

        ``preferred`` is tried before any other free port. Raises PortUnusable when a port that
        was asked for or is remembered is taken, since another one would silently change the URL.
        """
        port = asked or self._ports.get(name)
        if port is None:
            port = preferred if preferred and self._is_free(name, preferred) else free_port()
        elif not self._is_free(name, port):
            raise errors.PortUnusable(
                f"Port {port} is in use: stop the program that uses it, "
                f"or choose another one with --{name}-port."
            )
        self._ports[name] = port
        self._path.write_text(json.dumps(self._ports, indent=2) + "\n")
        return port

    def _is_free(self, name: str, port: int) -> bool:
        others = {other: each for other, each in self._ports.items() if other != name}
        return port not in others.values() and is_free(port)

    def _read(self) -> dict[str, int]:
        with contextlib.suppress(FileNotFoundError):
            ports: dict[str, int] = json.loads(self._path.read_text())
            return ports
        return {}


def is_free(port: int) -> bool:
    """Return whether a server could listen on the loopback port now."""
    with socket.socket() as server:
        # Like the servers themselves: connections of a predecessor may still linger.
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            server.bind((LOOPBACK, port))
            server.listen()
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a loopback port that nothing listens on."""
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        port: int = server.getsockname()[1]
        return port
