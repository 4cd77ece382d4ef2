"""The stub's stream of events: a websocket that lets everybody in and on which nothing happens."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import itertools
import re

PATH = "/events/out"

_MAGIC = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455
_KEY = re.compile(rb"sec-websocket-key:\s*(\S+)", re.IGNORECASE)
_TEXT, _CLOSE, _PING, _PONG = 1, 8, 9, 10
_FINAL = 0x80
_MASK_BYTES = 4

WELCOME = b'{"type":"auth_success"}'


def handshake(head: bytes) -> bytes:
    """The answer that turns a connection into a websocket; raises ValueError without a key."""
    key = _KEY.search(head)
    if key is None:
        raise ValueError("no websocket was asked for")
    accept = base64.b64encode(hashlib.sha1(key.group(1) + _MAGIC).digest())
    lines = (
        b"HTTP/1.1 101 Switching Protocols",
        b"Upgrade: websocket",
        b"Connection: Upgrade",
        b"Sec-WebSocket-Protocol: prefect",
        b"Sec-WebSocket-Accept: " + accept,
    )
    return b"\r\n".join(lines) + b"\r\n\r\n"


class EventSocket:
    """One subscriber: welcomed after its first message, and answered when it pings or closes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._received = b""
        self._greeted = False

    def receive(self, data: bytes) -> None:
        """Take what has come over the connection."""
        self._received += data
        while (frame := self._next_frame()) is not None:
            self._answer(*frame)

    def _answer(self, opcode: int, payload: bytes) -> None:
        if opcode == _TEXT and not self._greeted:
            self._greeted = True
            self._transport.write(_frame(_TEXT, WELCOME))
        elif opcode == _PING:
            self._transport.write(_frame(_PONG, payload))
        elif opcode == _CLOSE:
            self._transport.write(_frame(_CLOSE, payload))
            self._transport.close()

    def _next_frame(self) -> tuple[int, bytes] | None:
        """The next whole frame; clients mask theirs."""
        if len(self._received) < 2:
            return None
        opcode, length = self._received[0] & 0x0F, self._received[1] & 0x7F
        extra = {126: 2, 127: 8}.get(length, 0)
        start = 2 + extra + _MASK_BYTES
        if extra:
            length = int.from_bytes(self._received[2 : 2 + extra], "big")
        if len(self._received) < start + length:
            return None
        mask = self._received[start - _MASK_BYTES : start]
        payload = self._received[start : start + length]
        self._received = self._received[start + length :]
        return opcode, bytes(byte ^ key for byte, key in zip(payload, itertools.cycle(mask)))


def _frame(opcode: int, payload: bytes) -> bytes:
    """A frame that is short (125 bytes), as all of ours are."""
    return bytes((_FINAL | opcode, len(payload))) + payload
