"""Whatever lies in a queue: the worker drops it with one line, counts it, and goes on."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import hypothesis
import kombu
import pytest
from hypothesis import strategies as st

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import dispatcher_command, light_jobs, poison, rabbitmq_server, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

AT_ONCE = 100
MAX_LINE = 400  # characters, with what every line of a log has
SECONDS = 120.0
LARGE = 2**29  # bytes


def put(stack: stacks.Stack, queue: str, messages: Sequence[str | bytes]) -> None:
    pipeline = stack.redis.pipeline(transaction=False)
    for message in messages:
        pipeline.lpush(queue, message)
    pipeline.execute()


def wait_until_read(stack: stacks.Stack, queues: Sequence[str]) -> None:
    waiting.wait_for(
        lambda: not any(stack.redis.llen(queue) for queue in queues),
        seconds=SECONDS,
        what="all messages are read",
    )


def dropped(stack: stacks.Stack) -> int:
    """How many messages were dropped, as the status shows it."""
    _, found = dispatcher_command.status(stack)
    return sum(worker["dropped"] for worker in found["workers"])


@pytest.mark.parametrize(("pool", "rounds"), [("prefork", 100), ("threads", 20)])
def test_a_worker_goes_on_whatever_is_in_its_queues(
    new_stack: NewStack, pool: str, rounds: int
) -> None:
    with new_stack() as stack:
        schedule = str(stack.directory / "schedule")
        worker = stack.worker("all", "-P", pool, "-c", "3", "-B", "-s", schedule)
        stack.wait_until_served(stack.pool)
        queues = [tasks.CONTROL_QUEUE, tasks.RUNS_QUEUE, tasks.node_queue(stack.node("all"))]

        @hypothesis.settings(
            max_examples=rounds,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(
            st.lists(poison.ANYTHING, min_size=AT_ONCE, max_size=AT_ONCE), st.sampled_from(queues)
        )
        def feed(messages: list[str], queue: str) -> None:
            put(stack, queue, messages)

        feed()
        wait_until_read(stack, queues)
        run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
        assert run.wait_for_end().type is State.COMPLETED
        text = worker.text()
        assert worker.is_running
        assert "Traceback" not in text
        told = [line for line in text.splitlines() if "a message was dropped" in line]
        assert max(map(len, told)) <= MAX_LINE
        assert len(told) > rounds * AT_ONCE / 2
        waiting.wait_for(
            lambda: dropped(stack) == len(told), seconds=30, what="as many are counted"
        )
        waited = run.entered(State.PENDING) - run.entered(State.SCHEDULED)
        print(f"{len(told)} of {rounds * AT_ONCE} dropped; claimed after {waited:.2f} s")


def test_each_kind_is_dropped_with_its_own_reason(new_stack: NewStack) -> None:
    large = poison.envelope([["x" * 10 * 2**20], {}, {}], task=tasks.EXECUTE)
    compressed = poison.good(compression="application/x-gzip")
    pickled = poison.good() | {"content-type": "application/x-python-serialize"}
    expected: list[tuple[Any, str]] = [
        (poison.envelope([], task=tasks.EXECUTE), "its body is not that of a task"),
        (poison.good(args=[]), "its arguments are not those of the task"),
        (poison.good(args=["1", "2"]), "its arguments are not those of the task"),
        (poison.good(tasks.POLL, args=["a", "b"]), "its arguments are not those of the task"),
        (poison.good("app.tasks.add"), "there is no such task here"),
        (poison.good(eta="2030-01-01"), "its headers are not ours (eta)"),
        (poison.good(expires="soon"), "its headers are not ours (expires)"),
        (pickled, "its content is 'application/x-python-serialize', not JSON"),
        (large, "bytes"),
        (compressed, "its envelope is broken"),
        ({"headers": {"task": "a", "id": "b"}}, "its envelope is broken"),
        ("no JSON", "its envelope is broken"),
    ]
    with new_stack() as stack:
        worker = stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-P", "threads", "-c", "1")
        put(stack, tasks.RUNS_QUEUE, [json.dumps(message) for message, _ in expected])
        put(stack, tasks.RUNS_QUEUE, ["{", b"\xff\xfe", "[" * 100_000])
        wait_until_read(stack, [tasks.RUNS_QUEUE])
        waiting.wait_for(
            lambda: dropped(stack) == len(expected) + 3, seconds=30, what="all are counted"
        )
        text = worker.text()
        assert [reason for _, reason in expected if reason not in text] == []
        assert text.count("it is no JSON") == 3
        assert "Traceback" not in text


def test_what_others_send_by_rabbitmq_is_dropped_as_well(
    rabbitmq: rabbitmq_server.RabbitMQServer, new_stack: NewStack
) -> None:
    with new_stack(DISPATCHER_BROKER_URL=rabbitmq.new_url()) as stack:
        schedule = str(stack.directory / "schedule")
        worker = stack.worker("all", "-c", "3", "-B", "-s", schedule)
        stack.wait_until_served(stack.pool)
        queues = [tasks.CONTROL_QUEUE, tasks.RUNS_QUEUE, tasks.node_queue(stack.node("all"))]
        sent: list[str] = []

        @hypothesis.settings(
            max_examples=300,
            deadline=None,
            database=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(poison.with_any_body() | poison.with_any_arguments(), st.data())
        def feed(message: str, data: st.DataObject) -> None:
            known = json.loads(message)
            queue = data.draw(st.sampled_from(queues))
            headers: dict[str, Any] = {
                "task": data.draw(st.sampled_from(poison.TASKS)),
                "id": "foreign",
            }
            others: list[dict[str, Any]] = [headers, {}, {"task": 1}, {"id": None}]
            producer.publish(
                base64.b64decode(known["body"]),
                exchange="",
                routing_key=queue,
                content_type=data.draw(st.sampled_from(["application/json", "text/plain"])),
                content_encoding="utf-8",
                headers=data.draw(st.sampled_from(others)),
            )
            sent.append(queue)

        with kombu.Connection(stack.environment["DISPATCHER_BROKER_URL"]) as connection:
            producer = connection.Producer()
            feed()
        # A few of them may be what a worker takes.
        waiting.wait_for(
            lambda: dropped(stack) > 0.9 * len(sent), seconds=60, what="they are dropped"
        )
        run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
        assert run.wait_for_end().type is State.COMPLETED
        assert "Traceback" not in worker.text()


def test_what_is_compressed_is_not_unpacked(
    rabbitmq: rabbitmq_server.RabbitMQServer, new_stack: NewStack
) -> None:
    with new_stack(DISPATCHER_BROKER_URL=rabbitmq.new_url()) as stack:
        worker = stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-P", "threads", "-c", "1")
        with kombu.Connection(stack.environment["DISPATCHER_BROKER_URL"]) as connection:
            connection.Producer().publish(
                b" " * LARGE,
                exchange="",
                routing_key=tasks.RUNS_QUEUE,
                content_type="application/json",
                content_encoding="utf-8",
                compression="gzip",
                headers={"task": tasks.EXECUTE, "id": "large"},
            )
        waiting.wait_for(lambda: dropped(stack) == 1, seconds=30, what="it is dropped")
        assert "CompressedMessageError" in worker.text()
        peak = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{worker.pid}/status").read_text())
        assert peak is not None
        assert int(peak[1]) * 1024 < LARGE
