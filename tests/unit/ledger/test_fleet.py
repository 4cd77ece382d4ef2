"""Slots: what workers report, for how long it counts, and what becomes of it without Redis."""

from __future__ import annotations

import json
import logging
import queue
import threading
from dataclasses import asdict
from typing import Any

import pytest
from redis import Redis, RedisError

from dispatcher.ledger import fleet, keys
from tests import valkey, waiting

ALIVE = f"{keys.PREFIX}nodes:alive"
DETAILS = f"{keys.PREFIX}nodes"


def node(name: str = "w1", *, pid: int = 1, slots: int = 4) -> fleet.Node:
    return fleet.Node(name=name, pid=pid, slots=slots, serves_control=True, version="1")


@pytest.fixture
def workers(redis: Redis) -> fleet.Fleet:
    return fleet.Fleet(redis)


def expire(redis: Redis, key: str) -> None:
    redis.zadd(ALIVE, {key: 0})


def test_an_empty_fleet_has_no_slots(workers: fleet.Fleet) -> None:
    assert workers.nodes() == []
    assert workers.slots() == 0


def test_slots_add_up_over_the_workers_that_are_alive(workers: fleet.Fleet) -> None:
    workers.report(node("w2", slots=3))
    workers.report(node("w1", slots=4))
    assert workers.nodes() == [node("w1", slots=4), node("w2", slots=3)]
    assert workers.slots() == 7


def test_the_last_report_of_a_worker_counts(workers: fleet.Fleet) -> None:
    workers.report(node(slots=4))
    workers.report(node(slots=2))
    assert workers.slots() == 2


def test_two_workers_of_one_name_both_count(workers: fleet.Fleet) -> None:
    workers.report(node(pid=1))
    workers.report(node(pid=2))
    assert workers.slots() == 8


def test_a_report_counts_for_its_lifetime_by_redis_clock(
    workers: fleet.Fleet, redis: Redis
) -> None:
    workers.report(node("w1"), lifetime_seconds=60)
    workers.report(node("w2"), lifetime_seconds=-1)
    assert [item.name for item in workers.nodes()] == ["w1"]
    expires = redis.zscore(ALIVE, node("w1").key)
    seconds, _ = redis.time()
    assert isinstance(expires, float)
    assert 55 < expires - seconds <= 61


def test_a_worker_that_leaves_is_out_at_once(workers: fleet.Fleet, redis: Redis) -> None:
    workers.report(node("w1"))
    workers.report(node("w2"))
    workers.leave(node("w1").key)
    assert [item.name for item in workers.nodes()] == ["w2"]
    assert redis.hkeys(DETAILS) == [node("w2").key]


def test_only_the_dead_are_forgotten(workers: fleet.Fleet, redis: Redis) -> None:
    workers.report(node("w1"))
    workers.report(node("w2"))
    expire(redis, node("w2").key)
    workers.forget_dead()
    assert redis.hkeys(DETAILS) == [node("w1").key]
    assert redis.zcard(ALIVE) == 1


def test_a_worker_without_details_is_passed_over(workers: fleet.Fleet, redis: Redis) -> None:
    workers.report(node("w1"))
    redis.hdel(DETAILS, node("w1").key)
    assert workers.nodes() == []


def test_a_worker_of_a_later_version_may_say_more(workers: fleet.Fleet, redis: Redis) -> None:
    workers.report(node())
    redis.hset(DETAILS, node().key, json.dumps({**asdict(node()), "colour": "red"}))
    assert workers.nodes() == [node()]


# The reporter


def reporter_of(workers: fleet.Fleet, **options: Any) -> fleet.NodeReporter:
    silent: dict[str, Any] = {"on_drain": lambda: None, "on_report": lambda: None}
    return fleet.NodeReporter(workers, node, **silent | options)


def test_a_worker_is_counted_when_its_start_returns_and_gone_when_its_stop_does(
    workers: fleet.Fleet,
) -> None:
    reporter = reporter_of(workers)
    reporter.start()
    assert workers.slots() == 4
    reporter.stop()
    assert workers.slots() == 0


class Turns:
    """Waits of a reporter that end when the test says so."""

    def __init__(self) -> None:
        self.intervals: list[float] = []
        self._next = threading.Semaphore(0)

    def wait(self, stopping: threading.Event, seconds: float) -> bool:
        self.intervals.append(seconds)
        while not stopping.is_set():
            if self._next.acquire(timeout=0.01):
                return False
        return True

    def go_on(self) -> None:
        self._next.release()


def test_reports_are_repeated_and_clean_up_after_the_dead(
    workers: fleet.Fleet, redis: Redis
) -> None:
    turns = Turns()
    reporter = reporter_of(workers, interval_seconds=7.0, wait=turns.wait)
    reporter.start()
    workers.report(node("w2"))
    expire(redis, node("w1").key)
    expire(redis, node("w2").key)
    assert workers.slots() == 0
    turns.go_on()
    waiting.wait_for(workers.slots, seconds=10, what="the worker has reported again")
    waiting.wait_for(
        lambda: redis.hkeys(DETAILS) == [node("w1").key], seconds=10, what="the dead are forgotten"
    )
    reporter.stop()
    assert set(turns.intervals) == {7.0}


def test_each_report_says_that_the_ledger_is_there(workers: fleet.Fleet) -> None:
    turns, said = Turns(), queue.SimpleQueue[None]()
    reporter = reporter_of(workers, on_report=lambda: said.put(None), wait=turns.wait)
    reporter.start()
    said.get(timeout=10)
    turns.go_on()
    said.get(timeout=10)
    reporter.stop()
    assert said.empty()


def test_an_outage_of_redis_is_logged_once_when_it_begins_and_ends(
    valkey_server: valkey.ValkeyServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=fleet.__name__)
    redis = valkey_server.client(timeout_seconds=0.05)
    redis.flushall()
    turns = Turns()
    reporter = reporter_of(fleet.Fleet(redis), wait=turns.wait)
    valkey_server.pause()
    try:
        reporter.start()
        turns.go_on()
        waiting.wait_for(lambda: len(turns.intervals) == 2, seconds=10, what="a second report")
    finally:
        valkey_server.resume()
    waiting.wait_for(lambda: answers(redis), seconds=10, what="Valkey is back")
    turns.go_on()
    waiting.wait_for(
        lambda: caplog.messages[-1] == "Redis is reachable again", seconds=10, what="the end"
    )
    assert len(caplog.messages) == 2
    assert "slots are not reported" in caplog.messages[0]
    reporter.stop()
    redis.close()


def answers(redis: Redis) -> bool:
    try:
        return bool(redis.ping())
    except RedisError:
        return False


def test_a_worker_stops_without_redis_too(
    no_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    reporter = reporter_of(fleet.Fleet(no_redis))
    reporter.start()
    reporter.stop()
    assert "worker w1 could not sign off" in caplog.messages[-1]


def test_names_that_have_gone_for_good_are_told_once(workers: fleet.Fleet, redis: Redis) -> None:
    for name in ("gone", "there"):
        workers.report(node(name))
    assert workers.gone_for_good() == []
    redis.zincrby(f"{keys.PREFIX}nodes:names", -fleet.NAME_LIFETIME - 10, "gone")
    assert workers.gone_for_good() == ["gone"]
    assert workers.gone_for_good() == []


def test_what_a_worker_serves_is_read_back(workers: fleet.Fleet) -> None:
    said = fleet.Node("w", 1, 2, False, "1", pools=("a", "b"), work_queues=("gpu",))
    workers.report(said)
    assert workers.nodes() == [said]
    assert (said.serves("b"), said.serves("c")) == (True, False)
    assert workers.pools() == ("a", "b")
    assert workers.names() == {"w"}


def test_who_has_left_for_good_is_not_brought_back_by_its_next_report(
    workers: fleet.Fleet,
) -> None:
    stays, leaves = node("stays"), node("leaves")
    for each in (stays, leaves):
        workers.report(each)
    workers.leave_for_good(leaves.key)
    for each in (stays, leaves):
        workers.report(each)
    assert workers.nodes() == [stays]
