"""What Flower, and whoever else watches Celery's events, is told of a flow run's end.

For eyes only: nothing is decided by it. Celery itself knows but one end of an execute task, that it
returned, since a flow that failed is no failure of the task.
"""

from __future__ import annotations

import ast
from collections.abc import Callable
from typing import Any

from dispatcher import planning
from dispatcher.prefect_api import schemas

State = schemas.StateType

# What a state's message may take of an event; Celery cuts a result off soon after it.
MESSAGE_CHARACTERS = 500

RECEIVED = "task-received"
SUCCEEDED = "task-succeeded"
FAILED = "task-failed"
REVOKED = "task-revoked"
RETRIED = "task-retried"
CANCELLED = "task-cancelled"

# Ends of an execution that leave its run to somebody else: what is to come is not known here.
_UNKNOWN = ("left to recovery", "to be reported")

# By how an execution ended. All others came to nothing: Celery's own word for that, rejected, is
# one that a task which has started does not take any more.
_EVENTS: dict[str, str] = {
    State.COMPLETED: SUCCEEDED,
    State.FAILED: FAILED,
    State.CRASHED: FAILED,
    State.CANCELLED: REVOKED,
    State.SCHEDULED: RETRIED,
    State.PAUSED: RETRIED,
    planning.PUT_BACK: RETRIED,
    **dict.fromkeys(_UNKNOWN, RETRIED),
}
# The state of the run tells more of these.
_EXPLAINED = frozenset(
    {State.FAILED, State.CRASHED, State.PAUSED, State.SCHEDULED, planning.PUT_BACK}
)

Glance = Callable[[], schemas.State | None]


class TellsTheEnd:
    """The part of a worker's request that whoever watches hears of; before Celery's own."""

    def send_event(self, type: str, **fields: Any) -> None:  # noqa: A002 # Celery's name
        """Celery calls this; that a task has returned is not what they want to know."""
        if type == CANCELLED:
            # A worker that stops in a hurry; the task says itself how that ended, maybe before.
            return
        request: Any = self
        if type == REVOKED and request.time_start is None:
            # Celery says nothing else of a message that comes after its revoke: not even its name.
            names = {"name": request.name, "args": request.argsrepr, "kwargs": request.kwargsrepr}
            super().send_event(RECEIVED, **names)  # type: ignore[misc] # of the request
        told, said = of_result(**fields) if type == SUCCEEDED else (type, fields)
        super().send_event(told, **said)  # type: ignore[misc] # of the request


def explain(end: str, glance: Glance) -> str:
    """Add to how an execution ended what its run's page says, which ``glance`` reads if need be."""
    if end not in _EXPLAINED:
        return end
    state = glance()
    said = (state.message or state.name) if state is not None else ""
    return f"{end}: {said[:MESSAGE_CHARACTERS]}" if said else end


def of_result(result: str, runtime: float) -> tuple[str, dict[str, Any]]:
    """The event in place of Celery's ``task-succeeded``, and its fields.

    ``result`` is what Celery makes of the task's, its representation; ``runtime`` is in seconds.
    """
    return event_of(_text(result), runtime)


def event_of(ended: str, runtime: float | None = None) -> tuple[str, dict[str, Any]]:
    """The event of an end as :func:`explain` words it, and the event's fields."""
    end, _, said = ended.partition(": ")
    kind = _EVENTS.get(end, REVOKED)
    words = said[:MESSAGE_CHARACTERS] or end.capitalize()
    if kind == SUCCEEDED:
        return kind, {"result": end.capitalize(), "runtime": runtime}
    if kind == REVOKED:
        revoked = {"terminated": end == State.CANCELLED, "signum": None, "expired": False}
        return kind, {**revoked, "result": words, "runtime": runtime}
    return kind, {"exception": words, "traceback": "", "runtime": runtime}


def _text(representation: str) -> str:
    try:
        value = ast.literal_eval(representation)
    except (SyntaxError, ValueError):
        # Cut off by Celery, or of another version.
        return representation.strip("'\"")
    return str(value)
