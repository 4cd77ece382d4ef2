"""What kombu finds on a broker, before it is a message.

On RabbitMQ a message has its parts by the protocol. In Redis it is a text that anybody may have
written, and one that kombu cannot read ends the worker. Compressed ones are none of ours, and may
become very large.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kombu.transport import pyamqp, virtual

Drop = Callable[[Any, str], None]


def is_readable(envelope: Any) -> bool:
    """Whether kombu can make a message of it."""
    match envelope:
        case {
            "body": str(),
            "content-type": str(),
            "content-encoding": str(),
            "headers": dict(headers),
            "properties": {
                "delivery_tag": str(),
                "delivery_info": {"exchange": str(), "routing_key": str()},
            } as properties,
        }:
            return "compression" not in headers and _has_known_encoding(properties)
    return False


def _has_known_encoding(properties: Mapping[str, Any]) -> bool:
    encoding = properties.get("body_encoding")
    return encoding is None or encoding == "base64"


def careful(transport: type[Any], drop: Drop) -> type[Any]:
    """Make a transport that reads nothing which could harm a worker.

    ``drop`` gets the headers of what is dropped from Redis, whatever they are, and why.
    """
    if issubclass(transport, pyamqp.Transport):
        return CarefulAmqpTransport
    return _careful(transport, drop) if issubclass(transport, virtual.Transport) else transport


class CompressedMessageError(Exception):
    """A message is compressed."""


class CarefulMessage(pyamqp.Message):
    """Is not unpacked; whoever receives it is told so as of any that cannot be decoded."""

    def __init__(self, msg: Any, channel: Any = None, **options: Any) -> None:
        headers = msg.properties.get("application_headers") or {}
        if "compression" in headers:
            self.errors = [(CompressedMessageError, CompressedMessageError(), None)]
        super().__init__(msg, channel, **options)


class CarefulAmqpChannel(pyamqp.Channel):
    """Makes such messages."""

    Message = CarefulMessage


class CarefulAmqpConnection(pyamqp.Connection):
    """Has such channels."""

    Channel = CarefulAmqpChannel


class CarefulAmqpTransport(pyamqp.Transport):
    """Has such connections."""

    Connection = CarefulAmqpConnection


def _careful(transport: type[Any], drop: Drop) -> type[Any]:

    class CarefulChannel(transport.Channel):  # type: ignore[name-defined,misc] # as given
        """Reads no further in what is no JSON."""

        def _brpop_read(self, **options: Any) -> Any:
            try:
                return super()._brpop_read(**options)
            except (ValueError, RecursionError):
                # It is not in Redis any more.
                drop(None, "it is no JSON")
                return True

    class CarefulTransport(transport):  # type: ignore[misc] # as given
        """Delivers what is a message."""

        Channel = CarefulChannel

        def _deliver(self, message: Any, queue: str) -> None:
            if is_readable(message):
                super()._deliver(message, queue)
            else:
                headers = message.get("headers") if isinstance(message, dict) else None
                drop(headers, "its envelope is broken")

    return CarefulTransport
