"""Hearing a Prefect server's events as they happen, over its websocket ``/events/out``.

The only module that knows the websocket library. Follows Prefect's own subscriber, without the
events from before.
"""

from __future__ import annotations

import contextlib
import json
import logging
from collections.abc import Collection, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from websockets import exceptions
from websockets.sync import client, connection
from websockets.typing import Subprotocol

from dispatcher import errors
from dispatcher.prefect_api import schemas, transport

ROUTE = "/events/out"
OPEN_SECONDS = 10.0
CLOSE_SECONDS = 1.0
# A server shows no event from after the end of the time asked for, which it takes for now if it
# is not told.
HORIZON = timedelta(days=365)

# The library writes every message into its log for debugging, and the first one holds the token.
_quiet = logging.getLogger(f"{__name__}.messages")
_quiet.setLevel(logging.WARNING)

_REFUSALS = {1002, 1008}  # protocol error, policy violation


class EventStream:
    """An open subscription."""

    def __init__(self, stream: connection.Connection) -> None:
        self._connection = stream

    def receive(self, timeout_seconds: float) -> schemas.Event | None:
        """The next event; ``None`` if there is none in time.

        Raises:
            errors.ApiError: as :func:`open_stream`.
        """
        with _errors():
            try:
                message = json.loads(self._connection.recv(timeout=timeout_seconds))
            except TimeoutError:
                return None
        if message.get("type") != "event":
            return None
        return schemas.Event.model_validate(message["event"])


@contextlib.contextmanager
def open_stream(
    api: transport.Transport, *, names: Collection[str], resource_ids: Collection[str]
) -> Iterator[EventStream]:
    """Subscribe, while the context lasts, to events of these names about any of the resources.

    Without ``resource_ids`` they may be about whatever there is.

    Raises:
        errors.ApiUnreachable: there is no connection, or it broke.
        errors.EventsRefused: the server has no such stream, or not for us.
    """
    access = api.socket(ROUTE)
    with contextlib.ExitStack() as stack:
        with _errors():
            stream = stack.enter_context(
                client.connect(
                    access.url,
                    ssl=access.tls,
                    subprotocols=[Subprotocol("prefect")],
                    additional_headers=access.headers,
                    user_agent_header=transport.USER_AGENT,
                    logger=_quiet,
                    open_timeout=OPEN_SECONDS,
                    close_timeout=CLOSE_SECONDS,
                )
            )
            _greet(stream, access.token, names, resource_ids)
        yield EventStream(stream)


def _greet(
    stream: connection.Connection,
    token: str | None,
    names: Collection[str],
    resource_ids: Collection[str],
) -> None:
    stream.send(json.dumps({"type": "auth", "token": token}))
    answer = json.loads(stream.recv(timeout=OPEN_SECONDS))
    if answer.get("type") != "auth_success":
        raise errors.EventsRefused
    now = datetime.now(UTC)
    wanted: dict[str, Any] = {
        "occurred": {"since": now.isoformat(), "until": (now + HORIZON).isoformat()},
        "event": {"name": list(names)},
    }
    if resource_ids:
        wanted["any_resource"] = {"id": list(resource_ids)}
    stream.send(json.dumps({"type": "filter", "backfill": False, "filter": wanted}))


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    """Turn what the library raises into errors of ours; none of these texts holds the token."""
    try:
        yield
    except exceptions.ConnectionClosed as error:
        if error.rcvd is not None and error.rcvd.code in _REFUSALS:
            raise errors.EventsRefused(f"Prefect's events were refused: {error}") from error
        raise errors.ApiUnreachable(f"The connection to Prefect's events broke: {error}") from error
    except exceptions.InvalidStatus as error:
        status = error.response.status_code
        kind = errors.ApiUnreachable if status >= 500 else errors.EventsRefused
        raise kind(f"Prefect's events are not to be had: HTTP {status}") from error
    except (exceptions.WebSocketException, ValueError) as error:
        raise errors.EventsRefused(f"Prefect's events are not to be had: {error}") from error
    except (OSError, EOFError) as error:
        raise errors.ApiUnreachable(f"Prefect's events cannot be reached: {error}") from error
