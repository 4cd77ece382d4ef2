"""Warm start: the job is a fork of a process that has imported Prefect already."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from executors import errors
from executors.process import launch as launching
from executors.process.fork_server import wire

# A fork takes milliseconds, on a machine that does anything at all.
ANSWER_SECONDS = 10.0


class NotServedError(Exception):
    """No fork server could be asked; nothing has been started."""


class WarmProcess:
    """A forked process. Whoever waits for it must reap it, once."""

    output: IO[bytes] | None = None

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self.pid = pid
        self.lost = False
        """Whether the job ended because its fork server did."""
        self._connection = connection

    def wait(self) -> int:
        """Wait for the end and return the exit status, negative for a signal.

        The process stays a zombie, so that its pid and group still mean this job. Not so if its
        fork server is gone, and the job with it.
        """
        try:
            # Left there, so that a wait which an exception cut short can be repeated.
            told = self._connection.recv(wire.NUMBER.size, socket.MSG_PEEK)
        except OSError:
            told = b""
        if len(told) < wire.NUMBER.size:
            self.lost = True
            return -signal.SIGKILL
        status: int = wire.NUMBER.unpack(told)[0]
        return status

    def reap(self) -> None:
        """Give the pid back to the system; returns when that is done."""
        with contextlib.suppress(OSError):
            self._connection.recv(wire.NUMBER.size)
            self._connection.sendall(wire.DISMISSAL)
            self._connection.recv(1)
        self._connection.close()


def start(launch: launching.Launch, server: Path) -> WarmProcess:
    """Start the job as a fork of the server at this path; it runs the server's engine.

    Raises LaunchError as a cold start does, NotServedError if there is no server.
    """
    launching.check_startable(launch)
    _check_environment(launch)
    request = {
        "job_id": launch.job_id,
        "directory": str(launch.directory),
        "cgroup": str(launch.cgroup or ""),
        "environment": dict(launch.environment),
    }
    try:
        connection = wire.connect(server, ANSWER_SECONDS)
    except OSError as error:
        raise NotServedError(str(error)) from None
    try:
        with _output(launch) as descriptors:
            wire.send(connection, request, descriptors)
        pid = _receive_pid(connection)
    except BaseException as error:
        # The server ends what it may have started already.
        connection.close()
        if isinstance(error, OSError):
            raise NotServedError(str(error)) from None
        raise
    connection.settimeout(None)
    return WarmProcess(connection, pid)


@contextlib.contextmanager
def guarded(job_id: str, server: Path | None) -> Iterator[None]:
    """Have what is left of a job killed if this process dies before the end of the block."""
    try:
        connection = wire.connect(server, ANSWER_SECONDS) if server else None
    except OSError:
        connection = None
    if connection is None:
        yield
        return
    with connection:
        message: dict[str, Any] = {"job_id": job_id}
        with contextlib.suppress(OSError):
            wire.send(connection, message)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                connection.sendall(wire.DISMISSAL)


def _receive_pid(connection: socket.socket) -> int:
    answer = connection.recv(wire.NUMBER.size, socket.MSG_WAITALL)
    pid: int = wire.NUMBER.unpack(answer)[0] if len(answer) == wire.NUMBER.size else 0
    if not pid:
        raise NotServedError("it could not fork")
    return pid


@contextlib.contextmanager
def _output(launch: launching.Launch) -> Iterator[tuple[int, int]]:
    """The descriptors that a job writes to."""
    if launch.stream_output:
        yield 1, 2
        return
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        yield nothing, nothing
    finally:
        os.close(nothing)


def _check_environment(launch: launching.Launch) -> None:
    for name, value in launch.environment.items():
        if not name or "=" in name or "\0" in name + value:
            raise errors.LaunchError(
                f"The job's command {launch.argv[0]!r} could not be started: "
                "a null byte or '=' in a name of its environment or in its arguments."
            )
