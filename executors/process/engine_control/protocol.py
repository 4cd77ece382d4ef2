"""How Prefect's engine talks to its launcher: the bytes, and nothing that does I/O.

The engine connects to the launcher, sends a token and a newline, then says hello with its version.
The launcher may ask it (one byte) to treat the next SIGTERM in a certain way, which the engine
acknowledges; or the engine reports the state in which it left the run, which the launcher
acknowledges. Whichever comes first is final. Prefect keeps this interface to itself, so whoever
uses it needs a way on without it.
"""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass
from typing import Literal

from dispatcher.prefect_api import schemas

ENGINE_MODULE = "prefect.engine"
PORT_VARIABLE = "PREFECT__CONTROL_PORT"
TOKEN_VARIABLE = "PREFECT__CONTROL_TOKEN"  # noqa: S105 - a name, not a token

Intent = Literal["cancel", "reschedule", "relinquish"]
INTENT_BYTES: dict[Intent, bytes] = {"cancel": b"c", "reschedule": b"r", "relinquish": b"q"}

RECEIPT_ACK = b"\x02"

_INTENT_ACK = b"a"
_HELLO_PREFIX = b"\x00PF"
_HELLO_BYTES = len(_HELLO_PREFIX) + 2
_VERSION_WITH_RECEIPTS = 2
_RECEIPTS = 1
_RECEIPT_PREFIX = b"\x01"
_RECEIPT_HEAD_BYTES = 5
_RECEIPT_MAX_BYTES = 4096

_NO_RECEIPTS_REPLY = _HELLO_PREFIX + bytes((1, 0))
_RECEIPTS_REPLY = _HELLO_PREFIX + bytes((_VERSION_WITH_RECEIPTS, _RECEIPTS))


class ProtocolError(Exception):
    """The other side does not speak the engine's protocol."""


@dataclass(frozen=True)
class IntentAcknowledged:
    """The engine will treat the next SIGTERM as asked."""


@dataclass(frozen=True)
class Hello:
    """The engine's version; ``reply`` is what to answer."""

    reply: bytes


@dataclass(frozen=True)
class Receipt:
    """The engine is done. ``state_type`` is ``None`` where the server told it to stop."""

    state_type: schemas.StateType | None


Message = IntentAcknowledged | Hello | Receipt


def take_message(buffer: bytearray) -> Message | None:
    """Take one whole message off the front of the buffer; ``None`` if it is not all there yet.

    Raises ProtocolError.
    """
    first = bytes(buffer[:1])
    if not first:
        return None
    if first == _INTENT_ACK:
        del buffer[:1]
        return IntentAcknowledged()
    if first == _HELLO_PREFIX[:1]:
        return _take_hello(buffer)
    if first == _RECEIPT_PREFIX:
        return _take_receipt(buffer)
    raise ProtocolError("unknown message")


def _take_hello(buffer: bytearray) -> Hello | None:
    if len(buffer) < _HELLO_BYTES:
        return None
    frame = bytes(buffer[:_HELLO_BYTES])
    del buffer[:_HELLO_BYTES]
    if not frame.startswith(_HELLO_PREFIX):
        raise ProtocolError("malformed hello")
    version, capabilities = frame[-2:]
    sends_receipts = version >= _VERSION_WITH_RECEIPTS and capabilities & _RECEIPTS
    return Hello(_RECEIPTS_REPLY if sends_receipts else _NO_RECEIPTS_REPLY)


def _take_receipt(buffer: bytearray) -> Receipt | None:
    if len(buffer) < _RECEIPT_HEAD_BYTES:
        return None
    size = int.from_bytes(buffer[1:_RECEIPT_HEAD_BYTES], "big")
    if size > _RECEIPT_MAX_BYTES:
        raise ProtocolError("receipt too large")
    end = _RECEIPT_HEAD_BYTES + size
    if len(buffer) < end:
        return None
    payload = bytes(buffer[_RECEIPT_HEAD_BYTES:end])
    del buffer[:end]
    return Receipt(_state_type(payload))


def _state_type(payload: bytes) -> schemas.StateType | None:
    try:
        content = json.loads(payload)
    except ValueError:
        raise ProtocolError("malformed receipt") from None
    if not isinstance(content, dict):
        raise ProtocolError("malformed receipt")
    # A type that a newer server may have added is as good as none: the run has to be read.
    with contextlib.suppress(ValueError):
        return schemas.StateType(str(content.get("state_type")))
    return None
