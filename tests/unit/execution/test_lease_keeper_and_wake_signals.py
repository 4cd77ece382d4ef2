"""Leases that a thread keeps, and the wake-ups that cut its waits short."""

from __future__ import annotations

import logging
import os
import queue
import resource
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatcher import planning
from dispatcher.execution import lease_keeper, wake_signals
from dispatcher.ledger import claims, redis_ledger
from tests import valkey, waiting
from tests.unit import ledgers

Stop = planning.StopReason

LONG_SECONDS = 60.0  # a wait that only a wake-up ends within a test


@pytest.fixture
def wakeup() -> Iterator[wake_signals.Wakeup]:
    made = wake_signals.Wakeup()
    yield made
    made.close()


def take_lease(book: claims.Ledger) -> claims.Lease:
    claim = claims.NewClaim(uuid4(), uuid4())
    book.open([claim], pool="pool", transition_id=uuid4(), slots=1000)
    lease = book.acquire(claim, owner="a")
    assert isinstance(lease, claims.Lease)
    return lease


class Reasons(queue.SimpleQueue[Stop]):
    """What a keeper said the job must stop for."""

    def now(self) -> list[Stop]:
        return [self.get() for _ in range(self.qsize())]


def keeper_of(
    book: claims.Ledger,
    lease: claims.Lease,
    wakeup: wake_signals.Wakeup,
    reasons: Reasons,
    **options: Any,
) -> lease_keeper.LeaseKeeper:
    values: dict[str, Any] = {
        "lease_seconds": LONG_SECONDS,
        "may_be_restarted": lambda: True,
        "memory_used": lambda: None,
        "stop_requested": lambda: None,
    }
    return lease_keeper.LeaseKeeper(
        book=book, lease=lease, wakeup=wakeup, on_stop=reasons.put, **values | options
    )


def touched_at(book: claims.Ledger, lease: claims.Lease) -> float:
    claim = book.get(lease.flow_run_id)
    assert claim is not None
    return claim.touched_at


# One renewal


def test_a_renewal_extends_the_lease_and_stops_nothing(
    book: redis_ledger.RedisLedger, redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    ledgers.age(redis, lease.flow_run_id, 100)
    keeper_of(book, lease, wakeup, reasons).look()
    assert book.now() - touched_at(book, lease) < 50
    assert reasons.now() == []


def test_a_cancel_is_heard_at_each_renewal(
    book: redis_ledger.RedisLedger, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    book.request_cancel(lease.flow_run_id)
    keeper = keeper_of(book, lease, wakeup, reasons)
    keeper.look()
    keeper.look()
    assert reasons.now() == [Stop.CANCEL, Stop.CANCEL]


def test_a_fence_that_moved_on_stops_the_job(
    book: redis_ledger.RedisLedger, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    book.close(claims.NewClaim(lease.flow_run_id, lease.claim_id), fence=lease.fence)
    keeper_of(book, lease, wakeup, reasons).look()
    assert reasons.now() == [Stop.LOST]


def test_a_flushed_ledger_stops_nothing_and_gets_its_lease_back(
    book: redis_ledger.RedisLedger, redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    before = book.get(lease.flow_run_id)
    assert before is not None
    redis.flushall()
    keeper_of(book, lease, wakeup, reasons).look()
    assert reasons.now() == []
    after = book.get(lease.flow_run_id)
    assert after is not None
    assert replace(after, opened_at=0, touched_at=0) == replace(before, opened_at=0, touched_at=0)


def test_one_renewal_without_redis_is_an_error_of_its_callers(
    book: redis_ledger.RedisLedger, no_redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    keeper = keeper_of(redis_ledger.RedisLedger(no_redis), lease, wakeup, reasons)
    with pytest.raises(RedisConnectionError):
        keeper.look()
    assert reasons.now() == []


def test_a_lease_that_somebody_else_has_after_a_flush_stops_the_job(
    book: redis_ledger.RedisLedger, redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    keeper = keeper_of(book, lease, wakeup, reasons)

    class Overtaken(redis_ledger.RedisLedger):
        """Somebody opens a claim between the holder's two questions."""

        def restore(self, lease: claims.Lease) -> bool:
            later = claims.NewClaim(lease.flow_run_id, uuid4())
            book.open([later], pool="pool", transition_id=uuid4(), slots=1000)
            return super().restore(lease)

    redis.flushall()
    keeper = keeper_of(Overtaken(redis), lease, wakeup, reasons)
    keeper.look()
    keeper.look()
    assert reasons.now() == [Stop.LOST, Stop.LOST]


def test_a_cancel_that_was_asked_for_before_a_flush_is_asked_for_again(
    book: redis_ledger.RedisLedger, redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    book.request_cancel(lease.flow_run_id)
    redis.flushall()
    keeper = keeper_of(book, lease, wakeup, reasons)
    keeper.look()
    assert book.request_cancel(lease.flow_run_id)[0] is claims.CancelResult.MARKED
    keeper.look()
    assert reasons.now() == [Stop.CANCEL]


def test_a_worker_that_is_to_stop_has_the_job_stopped(
    book: redis_ledger.RedisLedger, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    keeper_of(book, lease, wakeup, reasons, stop_requested=lambda: Stop.SHUTDOWN).look()
    assert reasons.now() == [Stop.SHUTDOWN]


def test_a_worker_that_is_to_stop_does_so_without_redis_too(
    book: redis_ledger.RedisLedger, no_redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    away = redis_ledger.RedisLedger(no_redis)
    with keeper_of(away, lease, wakeup, reasons, stop_requested=lambda: Stop.SHUTDOWN):
        wakeup.set()
        assert reasons.get(timeout=10) is Stop.SHUTDOWN


class Clock:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.mark.parametrize("may_be_restarted", [True, False])
def test_only_a_run_that_may_be_restarted_is_stopped_once_its_lease_is_over(
    book: redis_ledger.RedisLedger,
    no_redis: Redis,
    wakeup: wake_signals.Wakeup,
    may_be_restarted: bool,
) -> None:
    lease, reasons, clock = take_lease(book), Reasons(), Clock()
    away = redis_ledger.RedisLedger(no_redis)
    asked = queue.SimpleQueue[None]()

    def answer() -> bool:
        asked.put(None)
        return may_be_restarted

    options = {"may_be_restarted": answer, "monotonic": clock, "lease_seconds": 15.0}
    with keeper_of(away, lease, wakeup, reasons, **options):
        clock.seconds += 14.9
        wakeup.set()
        with pytest.raises(queue.Empty):
            asked.get(timeout=0.3)
        clock.seconds += 0.1
        wakeup.set()
        asked.get(timeout=10)
        wakeup.set()
        asked.get(timeout=10)
    assert set(reasons.now()) == ({Stop.UNREACHABLE} if may_be_restarted else set())


def test_the_time_of_a_lease_counts_from_when_its_last_renewal_was_asked_for(
    book: redis_ledger.RedisLedger, redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    # Redis took it at some time after that; the answer may have been slow.
    lease, reasons, clock = take_lease(book), Reasons(), Clock()

    class Slow(redis_ledger.RedisLedger):
        away = False

        def renew(
            self, lease: claims.Lease, *, memory: int | None = None
        ) -> tuple[claims.Renewal, bool]:
            if self.away:
                raise RedisConnectionError
            clock.seconds += 10
            return super().renew(lease, memory=memory)

    slow = Slow(redis)
    with keeper_of(slow, lease, wakeup, reasons, monotonic=clock, lease_seconds=15.0) as keeper:
        keeper.look()
        slow.away = True
        clock.seconds += 4
        wakeup.set()
        with pytest.raises(queue.Empty):
            reasons.get(timeout=0.3)
        clock.seconds += 1
        wakeup.set()
        assert reasons.get(timeout=10) is Stop.UNREACHABLE


class Hanging(redis_ledger.RedisLedger):
    """A ledger whose answers do not come until the test is over."""

    def __init__(self, redis: Redis) -> None:
        super().__init__(redis)
        self.asked = threading.Event()
        self.over = threading.Event()

    def renew(
        self, lease: claims.Lease, *, memory: int | None = None
    ) -> tuple[claims.Renewal, bool]:
        self.asked.set()
        assert self.over.wait(LONG_SECONDS)
        return super().renew(lease, memory=memory)


def test_a_renewal_that_hangs_does_not_keep_the_holder_from_seeing_that_its_lease_is_over(
    book: redis_ledger.RedisLedger, redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons, clock, hanging = take_lease(book), Reasons(), Clock(), Hanging(redis)
    with keeper_of(hanging, lease, wakeup, reasons, monotonic=clock, lease_seconds=15.0):
        wakeup.set()
        assert hanging.asked.wait(10)
        clock.seconds += 14.9
        with pytest.raises(queue.Empty):
            reasons.get(timeout=lease_keeper.MAX_WATCH_INTERVAL + 0.3)
        clock.seconds += 0.1
        assert reasons.get(timeout=10) is Stop.UNREACHABLE
        hanging.over.set()


def test_a_renewal_that_hangs_does_not_keep_a_worker_that_is_to_stop(
    book: redis_ledger.RedisLedger, redis: Redis, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons, hanging = take_lease(book), Reasons(), Hanging(redis)
    stop = threading.Event()
    with keeper_of(
        hanging,
        lease,
        wakeup,
        reasons,
        stop_requested=lambda: Stop.SHUTDOWN if stop.is_set() else None,
    ):
        wakeup.set()
        assert hanging.asked.wait(10)
        stop.set()
        assert reasons.get(timeout=10) is Stop.SHUTDOWN
        hanging.over.set()


# The threads


def test_the_keeper_renews_at_intervals_by_itself(
    book: redis_ledger.RedisLedger, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    first = touched_at(book, lease)
    with keeper_of(book, lease, wakeup, reasons, lease_seconds=0.25):
        waiting.wait_for(
            lambda: touched_at(book, lease) != first, seconds=10, what="the first renewal"
        )
        second = touched_at(book, lease)
        waiting.wait_for(
            lambda: touched_at(book, lease) > second, seconds=10, what="the second renewal"
        )
    assert reasons.now() == []


def test_a_wake_up_makes_the_keeper_hear_of_a_cancel_at_once(
    book: redis_ledger.RedisLedger, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    with keeper_of(book, lease, wakeup, reasons):
        book.request_cancel(lease.flow_run_id)
        wakeup.set()
        # Well before the interval of 2 s is over.
        assert reasons.get(timeout=lease_keeper.MAX_RENEW_INTERVAL * 0.9) is Stop.CANCEL


def test_without_a_wake_up_a_cancel_is_heard_within_the_longest_interval(
    book: redis_ledger.RedisLedger, wakeup: wake_signals.Wakeup
) -> None:
    lease, reasons = take_lease(book), Reasons()
    with keeper_of(book, lease, wakeup, reasons, lease_seconds=3600.0):
        book.request_cancel(lease.flow_run_id)
        assert reasons.get(timeout=lease_keeper.MAX_RENEW_INTERVAL + 3.0) is Stop.CANCEL


def test_the_keeper_ends_at_once_and_leaves_no_threads(
    book: redis_ledger.RedisLedger, wakeup: wake_signals.Wakeup
) -> None:
    started = time.monotonic()
    with keeper_of(book, take_lease(book), wakeup, Reasons()):
        assert {"lease-keeper", "lease-watcher"} <= thread_names()
    assert time.monotonic() - started < lease_keeper.MAX_WATCH_INTERVAL
    assert not {"lease-keeper", "lease-watcher"} & thread_names()


def thread_names() -> set[str]:
    return {thread.name for thread in threading.enumerate()}


def test_while_redis_is_away_a_run_that_nobody_restarts_goes_on_and_the_log_says_so_once(
    valkey_server: valkey.ValkeyServer,
    wakeup: wake_signals.Wakeup,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger=lease_keeper.__name__)
    redis = valkey_server.client(timeout_seconds=0.05)
    redis.flushall()
    book, reasons = redis_ledger.RedisLedger(redis), Reasons()
    lease = take_lease(book)
    options = {"lease_seconds": 0.25, "may_be_restarted": lambda: False}
    with keeper_of(book, lease, wakeup, reasons, **options):
        valkey_server.pause()
        try:
            waiting.wait_for(lambda: caplog.messages, seconds=10, what="the outage is noticed")
            threading.Event().wait(0.3)  # some more renewals fail
        finally:
            valkey_server.resume()
        waiting.wait_for(lambda: len(caplog.messages) > 1, seconds=10, what="the outage is over")
    assert len(caplog.messages) == 2
    assert f"the lease of flow run {lease.flow_run_id} cannot be renewed" in caplog.messages[0]
    assert caplog.messages[1] == f"the lease of flow run {lease.flow_run_id} is renewed again"
    assert reasons.now() == []
    redis.close()


# Wake-ups


def seconds_of(wakeup: wake_signals.Wakeup, wait_seconds: float) -> float:
    started = time.monotonic()
    wakeup.wait(wait_seconds)
    return time.monotonic() - started


def test_a_wait_lasts_as_long_as_it_should(wakeup: wake_signals.Wakeup) -> None:
    assert seconds_of(wakeup, 0.05) >= 0.04


def test_a_wake_up_from_before_ends_the_next_wait_and_only_that(
    wakeup: wake_signals.Wakeup,
) -> None:
    wakeup.set()
    wakeup.set()
    assert seconds_of(wakeup, LONG_SECONDS) < 10
    assert seconds_of(wakeup, 0.05) >= 0.04


def test_a_wait_is_cut_short_from_another_thread(wakeup: wake_signals.Wakeup) -> None:
    timer = threading.Timer(0.05, wakeup.set)
    timer.start()
    assert seconds_of(wakeup, LONG_SECONDS) < 10
    timer.join()


def test_any_number_of_wake_ups_is_taken(wakeup: wake_signals.Wakeup) -> None:
    for _ in range(100_000):  # more than a pipe holds
        wakeup.set()
    assert seconds_of(wakeup, LONG_SECONDS) < 10


def test_a_worker_with_many_open_files_can_wait_too() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    fillers = []
    try:
        while (descriptor := os.open(os.devnull, os.O_RDONLY)) < 1100:
            fillers.append(descriptor)
        fillers.append(descriptor)
        wakeup = wake_signals.Wakeup()
        wakeup.set()
        assert seconds_of(wakeup, LONG_SECONDS) < 10
        wakeup.close()
    finally:
        for descriptor in fillers:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.fixture
def wakes() -> Iterator[wake_signals.Wakeups]:
    before = signal.getsignal(wake_signals.WAKE_SIGNAL)
    yield wake_signals.Wakeups()
    signal.signal(wake_signals.WAKE_SIGNAL, before)


def send_wake_signal() -> None:
    os.kill(os.getpid(), wake_signals.WAKE_SIGNAL)


def test_one_signal_wakes_every_task_of_the_process(wakes: wake_signals.Wakeups) -> None:
    wakes.install()
    with wakes.open() as first, wakes.open() as second:
        send_wake_signal()
        assert seconds_of(first, LONG_SECONDS) < 10
        assert seconds_of(second, LONG_SECONDS) < 10


def test_a_signal_between_tasks_is_harmless_and_forgotten(wakes: wake_signals.Wakeups) -> None:
    wakes.install()
    send_wake_signal()
    with wakes.open() as first:
        pass
    send_wake_signal()
    with wakes.open() as second:
        assert seconds_of(second, 0.05) >= 0.04
    assert first is not second


def test_a_task_that_has_ended_gives_its_descriptors_back(wakes: wake_signals.Wakeups) -> None:
    before = set(Path("/proc/self/fd").iterdir())
    for _ in range(20):
        with pytest.raises(LookupError), wakes.open():
            raise LookupError
    assert len(set(Path("/proc/self/fd").iterdir()) - before) <= 1


def test_a_signal_reaches_a_keeper_through_its_wake_up(
    book: redis_ledger.RedisLedger, wakes: wake_signals.Wakeups
) -> None:
    wakes.install()
    lease, reasons = take_lease(book), Reasons()
    with wakes.open() as wakeup, keeper_of(book, lease, wakeup, reasons):
        book.request_cancel(lease.flow_run_id)
        send_wake_signal()
        assert reasons.get(timeout=lease_keeper.MAX_RENEW_INTERVAL * 0.9) is Stop.CANCEL
