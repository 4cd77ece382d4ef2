"""How a launcher talks to a fork server: sockets in a directory of their own, and the bytes.

A connection is one job. The launcher sends a request, and with it the descriptors of the job's
output; the server answers with the pid (0: it could not fork) and, at the end, with the exit
status. One byte from the launcher then gives the pid back. Whoever hangs up before is dead.
Standard library only, since the fork server uses it as well.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

MAX_REQUEST_BYTES = 64 * 1024 * 1024
MAX_DESCRIPTORS = 2
READ_BYTES = 65536
DISMISSAL = b"\0"

NUMBER = struct.Struct("!i")
_HEAD = struct.Struct("!I")


class WireError(Exception):
    """The other side does not speak this protocol."""


def encode(message: Mapping[str, Any]) -> bytes:
    """A message as bytes; what is no text in an environment survives it."""
    body = json.dumps(message).encode()
    return _HEAD.pack(len(body)) + body


def decode(received: bytearray) -> dict[str, Any] | None:
    """Take a message off the front; ``None`` if it is not all there yet. Raises WireError."""
    if len(received) < _HEAD.size:
        return None
    (size,) = _HEAD.unpack_from(received)
    if size > MAX_REQUEST_BYTES:
        raise WireError("request too large")
    end = _HEAD.size + size
    if len(received) < end:
        return None
    body = bytes(received[_HEAD.size : end])
    del received[:end]
    try:
        message = json.loads(body)
    except ValueError:
        raise WireError("malformed request") from None
    if not isinstance(message, dict):
        raise WireError("malformed request")
    return message


def send(
    connection: socket.socket, message: Mapping[str, Any], descriptors: Sequence[int] = ()
) -> None:
    """Send a whole message; raises OSError."""
    data = memoryview(encode(message))
    sent = socket.send_fds(connection, [data], list(descriptors)) if descriptors else 0
    connection.sendall(data[sent:])


def listen(path: Path) -> socket.socket:
    """Listen at a path that does not exist yet."""
    listener = socket.socket(socket.AF_UNIX)
    with _address(path) as address:
        listener.bind(address)
    listener.listen(socket.SOMAXCONN)
    listener.setblocking(False)
    return listener


def connect(path: Path, timeout_seconds: float | None) -> socket.socket:
    """Connect to whoever listens at a path; raises OSError."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(timeout_seconds)
        with _address(path) as address:
            connection.connect(address)
    except BaseException:
        connection.close()
        raise
    return connection


@contextlib.contextmanager
def _address(path: Path) -> Iterator[str]:
    """A name for a path that is short enough for a socket, however deep the path is."""
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
