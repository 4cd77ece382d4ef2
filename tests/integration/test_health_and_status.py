"""Health checks and status of real workers, also while Redis or Prefect hang."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from dispatcher.prefect_api import schemas
from tests import dispatcher_command, redis_server, waiting
from tests.conftest import NewStack

State = schemas.StateType

CHANGE_SECONDS = 30.0
AT_ONCE_SECONDS = 2.0


class Probe:
    """Asks a worker how it is."""

    def __init__(self) -> None:
        self.port = redis_server.free_port()

    @property
    def settings(self) -> dict[str, str]:
        """What makes a worker answer."""
        return {"DISPATCHER_HEALTH_PORT": str(self.port)}

    def get(self, path: str) -> tuple[int, str]:
        """The status and message of a check; status 0 if nobody listens."""
        began = time.monotonic()
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self.port}{path}", timeout=AT_ONCE_SECONDS
            ) as answer:
                found = answer.status, json.load(answer)["message"]
        except urllib.error.HTTPError as error:
            with error:
                found = error.code, json.load(error)["message"]
        except (urllib.error.URLError, ConnectionError):
            return 0, ""
        assert time.monotonic() - began < AT_ONCE_SECONDS
        return found

    def wait_for(self, path: str, status: int) -> str:
        """Wait until a check has this status; its message."""
        waiting.wait_for(
            lambda: self.get(path)[0] == status,
            seconds=CHANGE_SECONDS,
            what=f"{path} answers {status}",
        )
        return self.get(path)[1]


@pytest.fixture
def own_redis() -> Iterator[redis_server.RedisServer]:
    """A server that a test may let hang."""
    with (
        tempfile.TemporaryDirectory(prefix="redis-") as directory,
        redis_server.RedisServer(Path(directory)) as server,
    ):
        yield server


def test_worker_with_beat_is_well_and_shows_in_the_status(new_stack: NewStack) -> None:
    probe = Probe()
    with new_stack(**probe.settings) as stack:
        worker = stack.worker_with_beat(concurrency=3)
        stack.wait_until_served(stack.pool)
        gate = stack.directory / "gate"
        run = stack.run(
            stack.deployment("waits_for_file", file="dispatch_flows.py"), {"file": str(gate)}
        )
        run.wait_for_line("running")

        assert probe.get("/health") == (200, "OK")
        assert probe.wait_for("/ready", 200) == "OK"
        node = stack.node("worker")
        assert dispatcher_command.run(stack, "health", "--node", node) == (0, f"OK: {node}\n")
        assert dispatcher_command.run(stack, "health", "--beat")[0] == 0
        assert dispatcher_command.run(stack, "health", "--node", "other@test")[0] == 1

        code, found = dispatcher_command.status(stack)
        assert code == 0, found
        assert found["problems"] == []
        [pool] = found["pools"]
        assert (pool["name"], pool["type"], pool["status"]) == (stack.pool, "process", "READY")
        assert pool["last_poll_seconds"] < 30
        assert [queue["name"] for queue in pool["work_queues"]] == ["default"]
        [shown] = found["workers"]
        assert (shown["name"], shown["slots"], shown["used"], shown["free"]) == (node, 2, 1, 1)
        assert found["claims"]["held"] == 1
        assert found["slots"] == {"total": 2, "free": 1}

        # It finishes the run, and is well meanwhile; but takes no other.
        worker.send_signal(signal.SIGTERM)
        assert probe.wait_for("/ready", 503) == "The worker is shutting down"
        assert probe.get("/health") == (200, "OK")
        assert dispatcher_command.run(stack, "health", "--node", node)[0] == 1
        gate.touch()
        assert run.wait_for_end().type is State.COMPLETED
        assert worker.wait(60) == 0
        assert probe.get("/health")[0] == 0


def test_prefect_that_hangs_keeps_no_check_waiting_and_missed_polls_are_told(
    new_stack: NewStack,
) -> None:
    probe = Probe()
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        api_url = f"http://127.0.0.1:{silent.getsockname()[1]}/api"
        # Missed after 15 s, counted from before a busy machine has the worker ready.
        settings = {**probe.settings, "DISPATCHER_POLL_INTERVAL": "0.5"}
        with new_stack(api_url=api_url, **settings) as stack:
            worker = stack.worker("worker", "--concurrency", "2")
            assert probe.get("/health") == (200, "OK")
            probe.wait_for("/ready", 200)
            message = probe.wait_for("/health", 503)
            assert repr(stack.pool) in message
            worker.wait_for_text("restart")

            code, found = dispatcher_command.status(stack)
            assert code == 1
            assert found["problems"][0].startswith("Prefect API: ")
            assert [each["name"] for each in found["workers"]] == [stack.node("worker")]


def test_redis_that_hangs_is_told_at_once_by_readiness_and_ends_nothing(
    new_stack: NewStack, own_redis: redis_server.RedisServer
) -> None:
    probe = Probe()
    with new_stack(**probe.settings, DISPATCHER_REDIS_URL=own_redis.new_url()) as stack:
        worker = stack.worker("worker", "--concurrency", "2")
        probe.wait_for("/ready", 200)

        own_redis.pause()
        try:
            assert probe.wait_for("/ready", 503) == "Redis does not answer"
            assert probe.get("/health") == (200, "OK")
            code, output = dispatcher_command.run(stack, "health", "--timeout", "0.5")
            assert code == 1
            assert output.startswith(("Redis did not answer", "Redis does not answer"))
            code, found = dispatcher_command.status(stack)
            assert code == 1
            assert found["workers"] is None
            assert any(problem.startswith("Redis: ") for problem in found["problems"])
        finally:
            own_redis.resume()

        assert probe.wait_for("/ready", 200) == "OK"
        assert worker.is_running


def test_worker_answers_while_redis_has_never_been_there(new_stack: NewStack) -> None:
    probe = Probe()
    url = f"redis://127.0.0.1:{redis_server.free_port()}/0"
    with new_stack(**probe.settings, DISPATCHER_REDIS_URL=url) as stack:
        stack.start("worker", "worker", "--hostname", stack.node("worker"), "-c", "2")
        assert probe.wait_for("/health", 200) == "OK"
        assert probe.get("/ready") == (503, "Redis does not answer")


def test_worker_whose_port_is_taken_does_not_start(new_stack: NewStack) -> None:
    probe = Probe()
    with (
        contextlib.closing(socket.create_server(("127.0.0.1", probe.port))),
        new_stack(**probe.settings) as stack,
    ):
        worker = stack.start("worker", "worker", "--hostname", stack.node("worker"), "-c", "2")
        assert worker.wait(60) == 1
        assert "DISPATCHER_HEALTH_PORT" in worker.text()
        assert "Traceback" not in worker.text()


def test_pool_child_does_not_keep_the_port_of_a_worker_that_was_killed(
    new_stack: NewStack,
) -> None:
    probe = Probe()
    with new_stack(**probe.settings) as stack:
        worker = stack.worker("worker", "--concurrency", "2")
        os.kill(worker.pid, signal.SIGKILL)
        worker.wait()
        again = stack.worker("again", "--concurrency", "2")
        assert probe.wait_for("/ready", 200) == "OK"
        assert again.is_running
