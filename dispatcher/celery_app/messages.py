"""What a message for the dispatcher looks like. Anybody may write to a queue, and anything.

Celery reads what it receives as if only Celery had sent it: a body of an unexpected shape ends the
worker with all its runs. So each message is looked at before Celery does.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import Annotated, Any

from celery.app.task import Context
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
)

from dispatcher.celery_app import tasks

CONTENT_TYPE = "application/json"
CONTENT_ENCODING = "utf-8"
# Ours have about a hundredth of that.
MAX_BODY_BYTES = 64 * 1024
# Of anything foreign that a log line shows.
SHOWN_CHARACTERS = 60


class ForeignMessageError(Exception):
    """A message is none of ours; says why in a few words, whatever the message holds."""


def _is_date(value: str) -> str:
    datetime.datetime.fromisoformat(value)
    return value


Text = Annotated[StrictStr, Field(max_length=1000)]


class _Headers(BaseModel):
    """Celery's headers of a task, and those that others add, such as what traces a request.

    A task that is to begin later, or that belongs to a group, is none that the dispatcher sends.
    """

    model_config = ConfigDict(extra="allow", hide_input_in_errors=True)

    lang: Text | None = None
    task: StrictStr
    id: Annotated[StrictStr, Field(min_length=1, max_length=255)]
    root_id: Text | None = None
    parent_id: Text | None = None
    group: None = None
    group_index: None = None
    origin: Text | None = None
    replaced_task_nesting: StrictInt | None = None
    shadow: Text | None = None
    eta: None = None
    expires: Annotated[StrictStr, AfterValidator(_is_date)] | None = None
    timelimit: tuple[None, None] | None = None
    retries: StrictInt | None = None
    argsrepr: Text | None = None
    kwargsrepr: Text | None = None
    ignore_result: StrictBool | None = None
    stamped_headers: None = None
    stamps: Annotated[dict[str, Any], Field(max_length=0)] | None = None
    tick_interval: Annotated[StrictInt | float, Field(ge=0, lt=1e9)] = 0


def check(message: Any) -> None:
    """Look at a message as kombu has it, before Celery does.

    Raises:
        ForeignMessageError: it is none that the dispatcher sends.
    """
    if message.content_type != CONTENT_TYPE or message.content_encoding != CONTENT_ENCODING:
        told = f"{message.content_type!s:.{SHOWN_CHARACTERS}}"
        raise ForeignMessageError(f"its content is {told!r}, not JSON")
    if len(message.body or "") > MAX_BODY_BYTES:
        raise ForeignMessageError(f"it has {len(message.body)} bytes")
    task = check_headers(message.headers)
    try:
        payload = message.decode()
    except Exception:  # noqa: BLE001 - whatever a decoder makes of what somebody has written
        raise ForeignMessageError("its body is no JSON") from None
    check_payload(task, payload)


def check_headers(headers: Any) -> str:
    """Return the task that a message of ours is for. Raises ForeignMessageError."""
    try:
        known = _Headers.model_validate(headers)
    except ValidationError as error:
        fields = ", ".join(sorted({str(each["loc"][0]) for each in error.errors() if each["loc"]}))
        raise ForeignMessageError(f"its headers are not ours ({fields or 'no mapping'})") from None
    if not _NOT_HEADERS.isdisjoint(known.model_extra or ()):
        raise ForeignMessageError("a header would overwrite what Celery knows of the task")
    if known.task not in _ARGUMENTS:
        raise ForeignMessageError("there is no such task here")
    return known.task


def check_payload(task: str, payload: Any) -> None:
    """Look at the arguments of a task. Raises ForeignMessageError."""
    match payload:
        case [list(args), dict(kwargs), dict(embedded)]:
            if any(embedded.values()):
                raise ForeignMessageError("it wants other tasks called after it")
            try:
                fits = _ARGUMENTS[task](args, kwargs)
            except (ValueError, TypeError, AttributeError):
                fits = False
            if not fits:
                raise ForeignMessageError("its arguments are not those of the task")
        case _:
            raise ForeignMessageError("its body is not that of a task")


def name_of(headers: Any) -> str:
    """Task and id of whatever has been received, as far as it tells, short enough for a log."""
    said = headers if isinstance(headers, dict) else {}
    return " ".join(
        f"{said[key]!s:.{SHOWN_CHARACTERS}}" if isinstance(said.get(key), str) else f"no {key}"
        for key in ("task", "id")
    )


def _is_tick(args: list[Any], kwargs: dict[str, Any]) -> bool:
    return len(args) == 1 and isinstance(args[0], str) and not kwargs


def _is_execute(args: list[Any], _later: dict[str, Any]) -> bool:
    # A worker of a later version may say more by name.
    return len(args) == 2 and all(str(uuid.UUID(each)) == each for each in args)


# In a worker, each header becomes an attribute of its task's request.
_NOT_HEADERS = frozenset(dir(Context)) - set(_Headers.model_fields)

_ARGUMENTS: dict[str, Callable[[list[Any], dict[str, Any]], bool]] = {
    **dict.fromkeys((tasks.POLL, tasks.CANCEL, tasks.RECOVER, tasks.SYNC), _is_tick),
    tasks.EXECUTE: _is_execute,
}
