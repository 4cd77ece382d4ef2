"""What is taken for a message of the dispatcher, and what is dropped before Celery sees it."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from kombu.transport import base, pyamqp, redis, virtual

from dispatcher.celery_app import dropped_messages, envelopes, messages, tasks
from tests import poison


class Channel(virtual.Channel):
    """Makes messages as kombu does, without a broker."""

    def __init__(self) -> None:
        """Nothing is there to connect to."""


def received(envelope: dict[str, Any]) -> Any:
    message = virtual.Message(envelope, channel=Channel())
    message.accept = {"application/json"}
    return message


@pytest.mark.parametrize("task", poison.TASKS)
def test_our_own_messages_are_taken(task: str) -> None:
    messages.check(received(poison.good(task)))


@pytest.mark.parametrize(
    "headers",
    [
        {"traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
        {"tick_interval": 5.0, "expires": "2030-01-01T00:00:00+00:00"},
        {"shadow": "a run", "argsrepr": "('a run',)", "timelimit": [None, None], "stamps": {}},
    ],
)
def test_headers_of_celery_and_of_those_who_trace_requests_are_taken(
    headers: dict[str, Any],
) -> None:
    messages.check(received(poison.good(tasks.POLL, **headers)))


def test_an_execute_task_may_say_more_by_name_in_a_later_version() -> None:
    [args, _, embedded] = json.loads(received(poison.good()).body)
    messages.check_payload(tasks.EXECUTE, [args, {"later": 1}, embedded])


@pytest.mark.parametrize(
    "headers",
    [
        {"task": 1},
        {"id": ""},
        {"id": None},
        {"eta": "2030-01-01"},
        {"expires": "soon"},
        {"expires": 5},
        {"timelimit": [1, 2]},
        {"group": "g"},
        {"stamped_headers": ["a"]},
        {"shadow": "x" * 2000},
        {"tick_interval": "often"},
        {"headers": []},
        {"called_directly": True},
        {"task": "app.tasks.add"},
    ],
)
def test_headers_that_could_mislead_a_worker_are_not(headers: dict[str, Any]) -> None:
    with pytest.raises(messages.ForeignMessageError):
        messages.check(received(poison.good(**{"task": tasks.EXECUTE, **headers})))


@pytest.mark.parametrize("headers", [None, [], "x", 1, {}])
def test_headers_that_are_none_are_not(headers: Any) -> None:
    with pytest.raises(messages.ForeignMessageError):
        messages.check_headers(headers)


@pytest.mark.parametrize(
    ("task", "payload"),
    [
        (tasks.POLL, []),
        (tasks.POLL, None),
        (tasks.POLL, [[], {}, {}]),
        (tasks.POLL, [[1], {}, {}]),
        (tasks.POLL, [["a"], {"pool": "b"}, {}]),
        (tasks.POLL, [["a"], {}, {"chain": ["app.tasks.add"]}]),
        (tasks.EXECUTE, [["a", "b"], {}, {}]),
        (tasks.EXECUTE, [[1, 2], {}, {}]),
        (tasks.EXECUTE, [["0" * 32] * 2, {}, {}]),
        (tasks.EXECUTE, {"args": [], "kwargs": {}, "embed": {}}),
    ],
)
def test_arguments_of_no_task_are_not(task: str, payload: Any) -> None:
    with pytest.raises(messages.ForeignMessageError):
        messages.check_payload(task, payload)


@given(poison.ANYTHING)
def test_whatever_it_is_it_is_taken_or_refused_in_few_words(text: str) -> None:
    try:
        envelope = json.loads(text)
    except ValueError:
        return
    if not envelopes.is_readable(envelope):
        return
    why = ""
    try:
        messages.check(received(envelope))
    except messages.ForeignMessageError as error:
        why = str(error)
    assert len(why) < 200


def test_a_name_for_the_log_is_short_whatever_is_in_it() -> None:
    assert messages.name_of({"task": "a", "id": "b"}) == "a b"
    assert messages.name_of({"task": ["x"] * 1000}) == "no task no id"
    assert messages.name_of(None) == "no task no id"
    long = messages.name_of({"task": "t" * 10**6, "id": "i" * 10**6})
    assert len(long) == 2 * messages.SHOWN_CHARACTERS + 1


# The transport


def test_rabbitmq_has_envelopes_of_its_own_and_other_transports_stay_as_they_are() -> None:
    drop = dropped_messages.DroppedMessages().note
    assert envelopes.careful(pyamqp.Transport, drop) is envelopes.CarefulAmqpTransport
    assert envelopes.careful(base.Transport, drop) is base.Transport


def test_a_transport_for_redis_stays_one() -> None:
    made = envelopes.careful(redis.Transport, dropped_messages.DroppedMessages().note)
    assert issubclass(made, redis.Transport)
    assert made.driver_type == "redis"
    assert issubclass(made.Channel, redis.Channel)


def test_what_is_dropped_is_taken_from_the_broker_and_counted() -> None:
    done: list[str] = []
    dropped = dropped_messages.DroppedMessages()
    receive = dropped.before(lambda _: done.append("received"), (OSError,))
    foreign = SimpleNamespace(
        content_type="text/plain",
        content_encoding="utf-8",
        headers={},
        body=b"",
        ack_log_error=lambda _logger, _errors: done.append("taken"),
    )
    receive(foreign)
    receive(received(poison.good()))
    assert (done, dropped.count) == (["taken", "received"], 1)
