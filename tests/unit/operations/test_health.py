"""Health: what a worker says of itself, over HTTP, and what a container's check finds out."""

from __future__ import annotations

import contextlib
import json
import os
import select
import socket
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis as redis_library
from click.testing import CliRunner

from dispatcher import cli, errors
from dispatcher.ledger import beat_reports, fleet, last_polls
from dispatcher.operations import health
from tests import redis_server, valkey, waiting

NODE = fleet.Node(name="celery@web1", pid=7, slots=4, serves_control=True, version="1")
POLL_INTERVAL = 5.0
LIMIT = POLL_INTERVAL * 30


class Clock:
    """Goes on when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def worker_health(
    redis: redis_library.Redis, clock: Callable[[], float] = time.monotonic, *pools: str
) -> health.WorkerHealth:
    return health.WorkerHealth(
        record=last_polls.LastPolls(redis),
        workers=fleet.Fleet(redis),
        node_key=NODE.key,
        pools=pools or ("a",),
        poll_interval_seconds=POLL_INTERVAL,
        monotonic=clock,
    )


@pytest.fixture
def worker(redis: redis_library.Redis, clock: Clock) -> health.WorkerHealth:
    return worker_health(redis, clock)


# Polls


def test_age_of_a_poll_counts_from_its_record(redis: redis_library.Redis) -> None:
    record = last_polls.LastPolls(redis)
    record.record("a")

    ages = record.ages(["a", "b"])

    assert list(ages) == ["a"]
    assert 0 <= ages["a"] < 5


def test_a_later_poll_replaces_an_earlier_one(redis: redis_library.Redis) -> None:
    redis.hset("{dispatcher}:polls", "a", "1")
    record = last_polls.LastPolls(redis)
    assert record.ages(["a"])["a"] > 1_000_000

    record.record("a")

    assert record.ages(["a"])["a"] < 5


# A worker's own view


def test_until_the_first_poll_the_start_of_the_worker_counts(
    worker: health.WorkerHealth, clock: Clock
) -> None:
    worker.look()
    clock.now += LIMIT
    assert worker.health() == health.Answer(True, "OK")

    clock.now += 1
    assert not worker.is_worker_still_polling()
    assert "'a' for 151 s" in worker.health().message


def test_poll_within_thirty_intervals_is_well_and_a_later_look_is_too_late(
    worker: health.WorkerHealth, redis: redis_library.Redis, clock: Clock
) -> None:
    clock.now += LIMIT + 1
    last_polls.LastPolls(redis).record("a")
    worker.look()
    assert worker.health().ok

    clock.now += LIMIT + 1
    redis.delete("{dispatcher}:polls")
    worker.look()
    assert not worker.health().ok


def test_no_poll_for_more_than_a_day_is_not_well(worker: health.WorkerHealth, clock: Clock) -> None:
    clock.now += 25 * 3600
    worker.look()
    assert not worker.health().ok


def test_every_pool_has_to_be_polled(redis: redis_library.Redis, clock: Clock) -> None:
    worker = worker_health(redis, clock, "a", "b")
    clock.now += LIMIT + 1
    last_polls.LastPolls(redis).record("a")
    worker.look()

    answer = worker.health()

    assert not answer.ok
    assert "'b'" in answer.message
    assert "'a'" not in answer.message


def test_poll_before_the_start_of_the_worker_is_no_reason_to_restart_it(
    redis: redis_library.Redis, clock: Clock
) -> None:
    redis.hset("{dispatcher}:polls", "a", "1")
    worker = worker_health(redis, clock)
    worker.look()
    assert worker.health().ok


def test_emptied_redis_takes_nothing_back(
    worker: health.WorkerHealth, redis: redis_library.Redis, clock: Clock
) -> None:
    clock.now += LIMIT
    last_polls.LastPolls(redis).record("a")
    worker.look()
    redis.flushall()
    clock.now += LIMIT - 1
    worker.look()
    assert worker.health().ok


def test_redis_away_is_not_ready_at_once_but_well_until_polls_are_missed(
    no_redis: redis_library.Redis, clock: Clock
) -> None:
    worker = worker_health(no_redis, clock)
    worker.look()
    assert worker.ready() == health.Answer(False, "Redis does not answer")
    assert worker.health().ok

    clock.now += LIMIT + 1
    worker.look()
    assert worker.health().message.endswith("; Redis does not answer")


def test_ready_once_the_worker_has_reported_its_slots(
    worker: health.WorkerHealth, redis: redis_library.Redis
) -> None:
    worker.look()
    assert worker.ready() == health.Answer(False, "The worker has not reported its slots")

    fleet.Fleet(redis).report(NODE)
    worker.look()
    assert worker.ready() == health.Answer(True, "OK")


def test_report_of_another_worker_does_not_count(
    worker: health.WorkerHealth, redis: redis_library.Redis
) -> None:
    other = fleet.Node(name="celery@web2", pid=7, slots=4, serves_control=True, version="1")
    fleet.Fleet(redis).report(other)
    worker.look()
    assert not worker.ready().ok


def test_what_was_seen_too_long_ago_does_not_count(
    worker: health.WorkerHealth, redis: redis_library.Redis, clock: Clock
) -> None:
    fleet.Fleet(redis).report(NODE)
    worker.look()
    clock.now += health.SIGHT_LIFETIME
    assert worker.ready().ok
    clock.now += 0.1
    assert worker.ready().message == "Redis does not answer"


def test_worker_that_shuts_down_is_well_without_polls_and_not_ready(
    worker: health.WorkerHealth, redis: redis_library.Redis, clock: Clock
) -> None:
    fleet.Fleet(redis).report(NODE)
    worker.look()
    worker.retire()
    clock.now += LIMIT + 1
    assert worker.health().ok
    assert worker.ready() == health.Answer(False, "The worker is shutting down")


def test_end_and_return_of_the_polls_are_logged_once(
    worker: health.WorkerHealth,
    redis: redis_library.Redis,
    clock: Clock,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "dispatcher.operations.health")
    clock.now += LIMIT + 1
    worker.look()
    worker.look()
    last_polls.LastPolls(redis).record("a")
    worker.look()
    worker.look()
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"]
    assert "restart" in caplog.text


def test_looks_by_itself_until_it_is_stopped(redis: redis_library.Redis) -> None:
    looks = threading.Semaphore(0)

    def wait(stopping: threading.Event, _seconds: float) -> bool:
        looks.release()
        return stopping.wait(0.01)

    worker = health.WorkerHealth(
        record=last_polls.LastPolls(redis),
        workers=fleet.Fleet(redis),
        node_key=NODE.key,
        pools=["a"],
        poll_interval_seconds=POLL_INTERVAL,
        wait=wait,
    )
    fleet.Fleet(redis).report(NODE)
    worker.start()
    for _ in range(3):
        assert looks.acquire(timeout=10)
    assert worker.ready().ok
    worker.stop()
    assert all(thread.name != "health" for thread in threading.enumerate())


# Over HTTP


@contextlib.contextmanager
def served(worker: health.WorkerHealth) -> Iterator[health.HealthServer]:
    server = health.HealthServer(worker, host="127.0.0.1", port=0)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def get(port: int, path: str, seconds: float = 5.0) -> tuple[int, dict[str, str]]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=seconds) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_health_and_readiness_over_http(redis: redis_library.Redis, clock: Clock) -> None:
    fleet.Fleet(redis).report(NODE)
    with served(worker_health(redis, clock)) as server:
        waiting.wait_for(
            lambda: get(server.port, "/ready")[0] == 200, seconds=10, what="the worker is ready"
        )
        assert get(server.port, "/health") == (200, {"message": "OK"})
        assert get(server.port, "/health?verbose=1") == (200, {"message": "OK"})
        assert get(server.port, "/elsewhere")[0] == 404

        clock.now += LIMIT + 1
        status, body = get(server.port, "/health")
        assert status == 503
        assert "Not polled" in body["message"]


def test_answers_at_once_while_redis_hangs(valkey_server: valkey.ValkeyServer) -> None:
    with contextlib.closing(valkey_server.client(timeout_seconds=60)) as redis:
        valkey_server.pause()
        try:
            with served(worker_health(redis)) as server:
                began = time.monotonic()
                assert get(server.port, "/health")[0] == 200
                assert get(server.port, "/ready")[0] == 503
                assert time.monotonic() - began < 2
                valkey_server.resume()
        finally:
            valkey_server.resume()


def test_client_that_says_nothing_keeps_nobody_waiting(redis: redis_library.Redis) -> None:
    with (
        served(worker_health(redis)) as server,
        socket.create_connection(("127.0.0.1", server.port)),
    ):
        assert get(server.port, "/health")[0] == 200


def test_client_that_hangs_up_is_no_news(
    redis: redis_library.Redis, capfd: pytest.CaptureFixture[str]
) -> None:
    with served(worker_health(redis)) as server:
        for request in (b"GET /health HTTP/1.0\r\n\r\n", b"\x16\x03\x01", b""):
            with socket.create_connection(("127.0.0.1", server.port)) as client:
                # A reset rather than an end.
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\0\0\0\0\0\0\0")
                client.sendall(request)
        assert get(server.port, "/health")[0] == 200
    assert capfd.readouterr().err == ""


def test_port_that_is_taken_is_said_before_the_worker_starts(redis: redis_library.Redis) -> None:
    worker = worker_health(redis)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(errors.SettingsError, match="DISPATCHER_HEALTH_PORT"):
            health.HealthServer(worker, host="127.0.0.1", port=port)


@pytest.mark.parametrize(("host", "port"), [("256.0.0.1", 0), ("127.0.0.1", 70_000)])
def test_address_that_cannot_be_is_refused(
    redis: redis_library.Redis, host: str, port: int
) -> None:
    with pytest.raises(errors.SettingsError, match="DISPATCHER_HEALTH_HOST"):
        health.HealthServer(worker_health(redis), host=host, port=port)


@pytest.mark.skipif(not socket.has_ipv6, reason="no IPv6 here")
def test_listens_on_ipv6_too(redis: redis_library.Redis) -> None:
    try:
        server = health.HealthServer(worker_health(redis), host="::1", port=0)
    except errors.SettingsError:
        pytest.skip("no IPv6 loopback here")
    assert server.port
    server.stop()


def test_server_that_was_never_started_gives_its_port_back(redis: redis_library.Redis) -> None:
    server = health.HealthServer(worker_health(redis), host="127.0.0.1", port=0)
    port = server.port
    server.stop()
    again = health.HealthServer(worker_health(redis), host="127.0.0.1", port=port)
    again.stop()


def test_forked_child_does_not_keep_the_port(redis: redis_library.Redis) -> None:
    server = health.HealthServer(worker_health(redis), host="127.0.0.1", port=0)
    port = server.port
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        os.write(write_end, b"x")
        os.close(write_end)
        select.select([], [], [], 60)
        os._exit(0)
    try:
        assert os.read(read_end, 1) == b"x"
        server.stop()
        again = health.HealthServer(worker_health(redis), host="127.0.0.1", port=port)
        again.stop()
    finally:
        os.kill(child, 9)
        os.waitpid(child, 0)
        os.close(read_end)
        os.close(write_end)


# The check of a container


def test_worker_of_the_host_is_found_by_its_report(redis: redis_library.Redis) -> None:
    fleet.Fleet(redis).report(NODE)
    assert health.check_worker(redis, host="web1") == health.Answer(True, "OK: celery@web1")
    answer = health.check_worker(redis, host="web2")
    assert answer == health.Answer(False, "No worker of host web2 has reported within 5 s")


def test_worker_is_found_by_its_node_name(redis: redis_library.Redis) -> None:
    fleet.Fleet(redis).report(NODE)
    assert health.check_worker(redis, host="any", node="celery@web1").ok
    assert not health.check_worker(redis, host="web1", node="other@web1").ok


def test_report_that_has_run_out_does_not_count(redis: redis_library.Redis) -> None:
    workers = fleet.Fleet(redis)
    workers.report(NODE, lifetime_seconds=0.01)
    waiting.wait_for(lambda: not workers.nodes(), seconds=5, what="the report runs out")
    assert not health.check_worker(redis, host="web1").ok


def test_beat_of_the_host_is_found_by_its_ticks(redis: redis_library.Redis) -> None:
    assert not health.check_beat(redis, host="web1").ok
    beat_reports.BeatReports(redis).report("web1")
    assert health.check_beat(redis, host="web1").ok
    assert not health.check_beat(redis, host="web2").ok


def test_sign_of_life_of_beat_runs_out(redis: redis_library.Redis) -> None:
    alive = beat_reports.BeatReports(redis)
    alive.report("web1", lifetime_seconds=0.01)
    waiting.wait_for(lambda: not alive.is_alive("web1"), seconds=5, what="the report runs out")


def test_beat_goes_on_without_redis(no_redis: redis_library.Redis) -> None:
    beat_reports.BeatReports(no_redis).report("web1")


def test_check_is_not_waited_for_longer_than_it_may_take() -> None:
    forever = threading.Event()

    def hang() -> health.Answer:
        forever.wait(60)
        return health.Answer(True, "too late")

    answer = health.within(0.05, hang)
    forever.set()
    assert answer == health.Answer(False, "Redis did not answer within 0.05 s")


# The command


@pytest.fixture
def run(
    valkey_server: redis_server.RedisServer, redis: redis_library.Redis
) -> Callable[..., tuple[int, str]]:
    def run(*arguments: str, url: str = "") -> tuple[int, str]:
        result = CliRunner().invoke(
            cli.main, ["health", *arguments], env=environment(url or valkey_server.url)
        )
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    return run


def environment(url: str) -> dict[str, str]:
    return {
        "DISPATCHER_REDIS_URL": url,
        "DISPATCHER_WORK_POOLS": "a",
        "PREFECT_API_URL": "http://127.0.0.1:1/api",
    }


def test_command_finds_a_worker_of_this_host(
    run: Callable[..., tuple[int, str]], redis: redis_library.Redis
) -> None:
    name = f"runs@{socket.gethostname()}"
    fleet.Fleet(redis).report(fleet.Node(name, 7, 4, serves_control=False, version="1"))
    assert run() == (0, f"OK: {name}\n")
    assert run("--node", name) == (0, f"OK: {name}\n")


def test_command_says_that_there_is_no_worker(run: Callable[..., tuple[int, str]]) -> None:
    host = socket.gethostname()
    assert run() == (1, f"No worker of host {host} has reported within 5 s\n")
    assert run("--node", "a@b") == (1, "No worker a@b has reported within 5 s\n")


def test_command_finds_beat(
    run: Callable[..., tuple[int, str]], redis: redis_library.Redis
) -> None:
    assert run("--beat")[0] == 1
    beat_reports.BeatReports(redis).report(socket.gethostname())
    assert run("--beat")[0] == 0


def test_command_does_not_take_a_node_for_beat(run: Callable[..., tuple[int, str]]) -> None:
    assert run("--beat", "--node", "a@b")[0] == 2


def test_command_says_that_redis_is_away(
    run: Callable[..., tuple[int, str]], tmp_path: Path
) -> None:
    code, output = run(url=f"redis://127.0.0.1:{redis_server.free_port()}/0")
    assert code == 1
    assert output.startswith("Redis does not answer: ")
    assert len(output.splitlines()) == 1


def test_command_does_not_wait_for_a_redis_that_hangs(
    run: Callable[..., tuple[int, str]], valkey_server: redis_server.RedisServer
) -> None:
    valkey_server.pause()
    try:
        began = time.monotonic()
        code, output = run("--timeout", "0.3")
        assert time.monotonic() - began < 1
    finally:
        valkey_server.resume()
    assert code == 1
    assert output.startswith(("Redis did not answer", "Redis does not answer"))
