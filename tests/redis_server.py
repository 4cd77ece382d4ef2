"""A real Valkey server on a loopback port, with a database for each user."""

from __future__ import annotations

import itertools
import socket
from pathlib import Path

from tests import valkey

DATABASES = 1024


class RedisServer(valkey.ValkeyServer):
    """A Valkey server that Celery can use; it keeps its port when it is started again."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory)
        self.port = free_port()
        self._unused = itertools.count(1)

    def new_url(self) -> str:
        """The address of a database that nobody has used yet."""
        return f"redis://127.0.0.1:{self.port}/{next(self._unused) % DATABASES}"

    @property
    def url(self) -> str:
        """The address of the database that clients of the socket use."""
        return f"redis://127.0.0.1:{self.port}/0"

    def _command(self) -> list[str]:
        # The last of two equal options counts.
        address = ["--bind", "127.0.0.1", "--port", str(self.port)]
        return [*super()._command(), *address, "--databases", str(DATABASES)]


def free_port() -> int:
    """A port of the loopback interface that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
