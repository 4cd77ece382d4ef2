"""Messages that no dispatcher has sent, as other applications, older versions or hands might."""

from __future__ import annotations

import base64
import json
import uuid
from typing import Any

from hypothesis import strategies as st

from dispatcher.celery_app import tasks

TASKS = (tasks.POLL, tasks.EXECUTE, tasks.CANCEL, tasks.RECOVER, tasks.SYNC)
NO_EMBEDDED = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}

_SCALARS = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20)
)
JSON = st.recursive(
    _SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4)
    ),
    max_leaves=8,
)


def good(task: str = tasks.EXECUTE, args: Any = None, **headers: Any) -> dict[str, Any]:
    """A message as the dispatcher sends it, for Redis."""
    ours = [str(uuid.uuid4()), str(uuid.uuid4())] if task == tasks.EXECUTE else ["no-such-pool"]
    return envelope([ours if args is None else args, {}, NO_EMBEDDED], task=task, **headers)


def envelope(payload: Any, *, body: bytes | None = None, **headers: Any) -> dict[str, Any]:
    """A message with any payload."""
    task_id = str(uuid.uuid4())
    written = json.dumps(payload).encode() if body is None else body
    return {
        "body": base64.b64encode(written).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {"lang": "py", "id": task_id, "retries": 0, **headers},
        "properties": {
            "correlation_id": task_id,
            "delivery_mode": 2,
            "delivery_info": {"exchange": "", "routing_key": "x"},
            "priority": 0,
            "body_encoding": "base64",
            "delivery_tag": str(uuid.uuid4()),
        },
    }


@st.composite
def changed(draw: st.DrawFn) -> str:
    """A good message with something anywhere in it replaced or left out."""
    message = good(draw(st.sampled_from(TASKS)))
    for _ in range(draw(st.integers(1, 3))):
        place: Any = message
        while True:
            key = draw(st.sampled_from(sorted(place)))
            if not isinstance(place[key], dict) or not place[key] or draw(st.booleans()):
                break
            place = place[key]
        if draw(st.booleans()):
            del place[key]
        else:
            place[key] = draw(JSON)
        if not message:
            break
    return json.dumps(message)


@st.composite
def with_any_body(draw: st.DrawFn) -> str:
    """A good envelope with a body of any shape, or of bytes."""
    task = draw(st.sampled_from(TASKS))
    if draw(st.booleans()):
        return json.dumps(envelope(draw(JSON), task=task))
    return json.dumps(envelope(None, body=draw(st.binary(max_size=60)), task=task))


@st.composite
def with_any_arguments(draw: st.DrawFn) -> str:
    """A good body for arguments that are none of the task's."""
    task = draw(st.sampled_from(TASKS))
    args, kwargs, embedded = draw(st.lists(JSON, max_size=3)), draw(JSON), draw(JSON)
    return json.dumps(envelope([args, kwargs, embedded], task=task))


@st.composite
def with_any_header(draw: st.DrawFn) -> str:
    """A good message with one more header, or another value of one."""
    known = ("id", "eta", "expires", "timelimit", "retries", "group", "stamps", "stamped_headers")
    further = ("shadow", "root_id", "argsrepr", "origin", "compression", "tick_interval", "headers")
    name = draw(st.sampled_from(known + further) | st.text(max_size=10))
    headers = {name: draw(JSON)} if name else {}
    message = good(draw(st.sampled_from(TASKS)))
    message["headers"] |= headers
    return json.dumps(message)


@st.composite
def of_another_kind(draw: st.DrawFn) -> str:
    """What other applications send: other tasks, the first protocol, other contents."""
    message = good(
        draw(st.sampled_from(["app.tasks.add", "celery.chord", "celery.backend_cleanup"]))
    )
    contents = ("application/x-python-serialize", "application/x-yaml", "text/plain", "")
    match draw(st.integers(0, 3)):
        case 0:
            message["content-type"] = draw(st.sampled_from(contents))
        case 1:
            first = {"task": draw(st.sampled_from(TASKS)), "id": "1", "args": [], "kwargs": {}}
            message |= {
                "headers": {},
                "body": base64.b64encode(json.dumps(first).encode()).decode(),
            }
        case 2:
            message["content-encoding"] = draw(st.sampled_from(["binary", "utf-16", "no-such"]))
    return json.dumps(message)


ANYTHING = (
    changed()
    | with_any_body()
    | with_any_arguments()
    | with_any_header()
    | of_another_kind()
    | st.text(max_size=40)
    | JSON.map(json.dumps)
)
