"""The error boundary of the scheduled tasks: what it logs, how often, and what it lets pass."""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable

import kombu.exceptions
import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatcher import error_boundary, errors
from dispatcher.ledger import fleet, rounds, served_pools
from tests import waiting

EXPECTED = [
    errors.ApiUnreachable("no answer"),
    errors.ObjectNotFound("no pool"),
    RedisConnectionError("no Redis"),
    kombu.exceptions.OperationalError("no broker"),
]


@pytest.fixture
def tick(redis: Redis, caplog: pytest.LogCaptureFixture) -> error_boundary.Ticks:
    caplog.set_level(logging.INFO, logger=error_boundary.__name__)
    return error_boundary.Ticks(["a", "b"].__contains__, rounds.Rounds(redis).begin_tick)


def failing(error: Exception) -> Callable[[], object]:
    def work() -> object:
        raise error

    return work


def test_a_ticks_result_is_returned_as_text(
    tick: error_boundary.Ticks, caplog: pytest.LogCaptureFixture
) -> None:
    assert tick.run("poll", "a", lambda: 3) == "3"
    assert caplog.messages == []


def test_of_ticks_that_have_lain_in_the_queue_one_in_an_interval_does_the_work(
    tick: error_boundary.Ticks,
) -> None:
    done: list[str] = []
    for _ in range(3):
        for pool in ("a", "b"):
            tick.run("poll", pool, functools.partial(done.append, pool), interval=1000.0)
    assert done == ["a", "b"]
    tick.run("sync", "a", lambda: done.append("other"), interval=1000.0)
    tick.run("poll", "a", lambda: done.append("asked for"))
    assert done == ["a", "b", "other", "asked for"]


def test_the_next_tick_does_the_work_again(tick: error_boundary.Ticks) -> None:
    done: list[int] = []

    def next_does() -> bool:
        tick.run("poll", "a", lambda: done.append(1), interval=0.05)
        return len(done) == 3

    waiting.wait_for(next_does, seconds=5, what="three rounds have been done")


@pytest.mark.parametrize("error", EXPECTED, ids=lambda error: type(error).__name__)
def test_what_an_operator_can_mend_is_one_line_without_a_traceback(
    tick: error_boundary.Ticks, caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    assert tick.run("poll", "a", failing(error)) is None
    assert caplog.messages == [f"poll of work pool 'a' fails: {error}"]
    assert caplog.records[0].exc_info is None


def test_a_failure_is_logged_when_it_begins_and_when_it_ends(
    tick: error_boundary.Ticks, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        tick.run("poll", "a", failing(EXPECTED[0]))
    for _ in range(3):
        tick.run("poll", "a", lambda: 0)
    tick.run("poll", "a", failing(EXPECTED[0]))
    assert caplog.messages == [
        "poll of work pool 'a' fails: no answer",
        "poll of work pool 'a' works again",
        "poll of work pool 'a' fails: no answer",
    ]


def test_pools_and_tasks_fail_separately(
    tick: error_boundary.Ticks, caplog: pytest.LogCaptureFixture
) -> None:
    for task, pool in [("poll", "a"), ("poll", "b"), ("cancel", "a")]:
        tick.run(task, pool, failing(EXPECTED[0]))
    assert len(caplog.messages) == 3
    tick.run("poll", "b", lambda: 0)
    assert caplog.messages[3:] == ["poll of work pool 'b' works again"]


def test_a_pool_that_is_not_to_be_served_is_refused(
    tick: error_boundary.Ticks, caplog: pytest.LogCaptureFixture
) -> None:
    worked: list[str] = []
    assert tick.run("poll", "c", lambda: worked.append("c")) is None
    assert worked == []
    assert caplog.messages == ["poll: no worker has work pool 'c' among its own"]


def test_a_tick_for_a_pool_that_only_another_worker_serves_is_done(redis: Redis) -> None:
    workers = fleet.Fleet(redis)
    served = served_pools.ServedPools(workers, ["a"])
    tick = error_boundary.Ticks(served.includes, rounds.Rounds(redis).begin_tick)
    assert tick.run("poll", "b", lambda: 1) is None
    workers.report(fleet.Node("w", 1, 2, serves_control=False, version="1", pools=("b",)))
    assert tick.run("poll", "b", lambda: 1) == "1"


def test_redis_that_is_away_when_the_pools_are_asked_for_fails_the_tick_as_expected(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    def away(_pool: str) -> bool:
        raise RedisConnectionError("no Redis")

    tick = error_boundary.Ticks(away, rounds.Rounds(redis).begin_tick)
    assert tick.run("poll", "a", lambda: 1) is None
    assert caplog.messages == ["poll of work pool 'a' fails: no Redis"]


def test_a_fault_of_ours_passes(tick: error_boundary.Ticks) -> None:
    with pytest.raises(LookupError):
        tick.run("poll", "a", failing(LookupError()))


def test_a_claims_outcome_is_passed_on() -> None:
    assert error_boundary.run_claim("run", lambda: "COMPLETED") == "COMPLETED"


@pytest.mark.parametrize("error", EXPECTED, ids=lambda error: type(error).__name__)
def test_a_claim_that_fails_as_expected_is_left_to_recovery(
    caplog: pytest.LogCaptureFixture, error: Exception
) -> None:
    def work() -> str:
        raise error

    assert error_boundary.run_claim("run", work) == f"left to recovery: {error}"
    assert caplog.messages == [f"flow run run is left to recovery: {error}"]
    assert caplog.records[0].exc_info is None


def test_a_fault_of_ours_in_a_claim_passes() -> None:
    with pytest.raises(ZeroDivisionError):
        error_boundary.run_claim("run", lambda: str(1 // 0))
