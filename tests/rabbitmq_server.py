"""A real RabbitMQ server on loopback ports, with a virtual host for each user."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Self

from tests import redis_server, waiting

# Debian's own script refuses to be run by others than its user; this is what it runs.
PROGRAM = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
VIRTUAL_HOSTS = 40
READY_SECONDS = 90.0
STOP_SECONDS = 30.0


def missing() -> str | None:
    """Say what is not installed; None if nothing is."""
    return None if PROGRAM.exists() else "rabbitmq-server is not installed"


class RabbitMQServer:
    """A broker whose data outlive it; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = redis_server.free_port()
        self._unused = itertools.count()
        self._environment = self._prepare()
        self._process: subprocess.Popen[bytes] | None = None
        # Otherwise it starts one that nobody ends.
        self._name_server: subprocess.Popen[bytes] | None = None

    def new_url(self) -> str:
        """The address of a virtual host that nobody has used yet."""
        return f"amqp://guest:guest@127.0.0.1:{self.port}/v{next(self._unused)}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        with (self.directory / "output").open("ab") as output:
            self._name_server = subprocess.Popen(
                ["epmd"], env=self._environment, stdout=output, stderr=output
            )
            self._process = subprocess.Popen(
                [str(PROGRAM)],
                env=self._environment,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        waiting.wait_for(self._answers, seconds=READY_SECONDS, every=0.2, what="RabbitMQ answers")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """End it with all that it has started, by default politely."""
        assert self._process is not None
        assert self._name_server is not None
        os.killpg(self._process.pid, number)
        self._process.wait(STOP_SECONDS)
        self._name_server.kill()
        self._name_server.wait()

    def _answers(self) -> bool:
        assert self._process is not None
        said = (self.directory / "output").read_text(errors="replace")
        assert self._process.poll() is None, f"RabbitMQ ended: {said[-3000:]}"
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"AMQP\x00\x00\x09\x01")
                return connection.recv(1) == b"\x01"
        except OSError:
            return False

    def _prepare(self) -> dict[str, str]:
        """Write what it reads, and return its environment."""
        hosts = [f"v{number}" for number in range(VIRTUAL_HOSTS)]
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        definitions = {
            "users": [{"name": "guest", "password": "guest", "tags": "administrator"}],
            "vhosts": [{"name": name} for name in hosts],
            "permissions": [{"user": "guest", "vhost": name, **everything} for name in hosts],
        }
        (self.directory / "definitions.json").write_text(json.dumps(definitions))
        (self.directory / "rabbitmq.conf").write_text(
            f"listeners.tcp.default = 127.0.0.1:{self.port}\n"
            f"load_definitions = {self.directory / 'definitions.json'}\n"
            "log.file.level = warning\n"
        )
        (self.directory / "plugins").write_text("[].\n")
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.directory),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"test{self.port}@localhost",
            "RABBITMQ_DIST_PORT": str(redis_server.free_port()),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "mnesia"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "plugins"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            "ERL_EPMD_PORT": str(redis_server.free_port()),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
        }
