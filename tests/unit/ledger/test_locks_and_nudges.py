"""Leased locks and nudges on a real Valkey."""

from __future__ import annotations

import threading
from concurrent import futures

import pytest
from redis import Redis
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatcher.ledger import keys, locks, poll_nudges

LOCK_KEY = f"{keys.PREFIX}lock:poll:a"
NUDGE_KEY = f"{keys.PREFIX}nudges:a"


@pytest.fixture
def mutex(redis: Redis) -> locks.Locks:
    return locks.Locks(redis)


def test_a_lock_is_held_by_one_and_free_afterwards(mutex: locks.Locks) -> None:
    with mutex.hold("poll:a", lease_seconds=60) as first:
        with mutex.hold("poll:a", lease_seconds=60) as second:
            assert (first, second) == (True, False)
        with mutex.hold("poll:a", lease_seconds=60) as third:
            assert third is False
    with mutex.hold("poll:a", lease_seconds=60) as fourth:
        assert fourth is True


def test_locks_of_other_names_do_not_matter(mutex: locks.Locks) -> None:
    with mutex.hold("poll:a", lease_seconds=60), mutex.hold("poll:b", lease_seconds=60) as held:
        assert held is True


def test_a_lock_is_free_after_an_error(mutex: locks.Locks) -> None:
    with pytest.raises(LookupError), mutex.hold("poll:a", lease_seconds=60):
        raise LookupError
    with mutex.hold("poll:a", lease_seconds=60) as held:
        assert held is True


def test_a_lock_gives_itself_up_after_its_lease(mutex: locks.Locks, redis: Redis) -> None:
    with mutex.hold("poll:a", lease_seconds=60):
        assert 59_000 < redis.pttl(LOCK_KEY) <= 60_000


def test_a_lock_that_ran_out_stays_with_whoever_took_it_since(
    mutex: locks.Locks, redis: Redis
) -> None:
    with mutex.hold("poll:a", lease_seconds=60):
        redis.delete(LOCK_KEY)
        second = mutex.hold("poll:a", lease_seconds=60)
        assert second.__enter__() is True
    assert redis.exists(LOCK_KEY)
    second.__exit__(None, None, None)
    assert not redis.exists(LOCK_KEY)


def test_of_many_threads_one_holds_the_lock(mutex: locks.Locks) -> None:
    barrier = threading.Barrier(8)

    def hold(_: int) -> bool:
        barrier.wait(10)
        with mutex.hold("poll:a", lease_seconds=60) as held:
            barrier.wait(10)
            return held

    with futures.ThreadPoolExecutor(8) as pool:
        assert sum(pool.map(hold, range(8))) == 1


class Polls(list[str]):
    """The polls that were asked for."""


@pytest.fixture
def polls() -> Polls:
    return Polls()


@pytest.fixture
def calls(redis: Redis, polls: Polls) -> poll_nudges.PollNudges:
    return poll_nudges.PollNudges(redis, polls.append)


def test_many_nudges_ask_for_one_poll(calls: poll_nudges.PollNudges, polls: Polls) -> None:
    for _ in range(5):
        calls.nudge("a")
    calls.nudge("b")
    assert polls == ["a", "b"]


def test_a_nudge_after_the_poll_took_the_last_asks_for_another(
    calls: poll_nudges.PollNudges, polls: Polls
) -> None:
    calls.nudge("a")
    assert calls.take("a")
    calls.nudge("a")
    assert polls == ["a", "a"]


def test_a_nudge_waits_until_it_is_taken_once(calls: poll_nudges.PollNudges) -> None:
    assert not calls.is_waiting("a")
    assert not calls.take("a")
    calls.nudge("a")
    assert calls.is_waiting("a")
    assert not calls.is_waiting("b")
    assert calls.is_waiting("a")
    assert calls.take("a")
    assert not calls.take("a")
    assert not calls.is_waiting("a")


def test_a_nudge_whose_poll_was_lost_does_not_block_for_long(
    calls: poll_nudges.PollNudges, redis: Redis
) -> None:
    calls.nudge("a")
    assert 0 < redis.pttl(NUDGE_KEY) <= poll_nudges.LIFETIME * 1000


def test_a_poll_at_work_is_nudged_and_not_sent_another(
    calls: poll_nudges.PollNudges, polls: Polls, mutex: locks.Locks
) -> None:
    with mutex.hold(poll_nudges.lock_name("a"), lease_seconds=60):
        calls.nudge("a")
        assert calls.is_waiting("a")
    assert polls == []


def test_a_nudge_ends_the_wait_for_it_and_is_taken(calls: poll_nudges.PollNudges) -> None:
    nudging = threading.Timer(0.05, calls.nudge, ("a",))
    nudging.start()
    assert calls.wait("a", 30.0)
    nudging.join()
    assert not calls.is_waiting("a")


@pytest.mark.parametrize("seconds", [-1.0, 0.0, 0.05])
def test_the_wait_for_a_nudge_is_no_longer_than_asked_for(
    calls: poll_nudges.PollNudges, seconds: float
) -> None:
    assert not calls.wait("a", seconds)
    calls.nudge("a")
    assert calls.wait("a", seconds)


def test_of_many_threads_one_asks_for_the_poll(calls: poll_nudges.PollNudges, polls: Polls) -> None:
    with futures.ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: calls.nudge("a"), range(32)))
    assert polls == ["a"]


def test_without_redis_a_nudge_fails_and_asks_for_nothing(no_redis: Redis) -> None:
    polls = Polls()
    with pytest.raises(RedisConnectionError):
        poll_nudges.PollNudges(no_redis, polls.append).nudge("a")
    assert polls == []


def test_a_leased_lock_is_one_owners_and_is_renewed_until_it_is_given_up(
    mutex: locks.Locks, redis: Redis
) -> None:
    with mutex.lease("poll:a", lease_seconds=60) as renew:
        assert renew is not None
        with mutex.lease("poll:a", lease_seconds=60) as second:
            assert second is None
        redis.pexpire(LOCK_KEY, 5_000)
        assert renew()
        assert redis.pttl(LOCK_KEY) > 50_000
    assert not redis.exists(LOCK_KEY)


def test_a_leased_lock_that_somebody_else_took_is_not_renewed(
    mutex: locks.Locks, redis: Redis
) -> None:
    with mutex.lease("poll:a", lease_seconds=60) as renew:
        assert renew is not None
        redis.set(LOCK_KEY, "somebody else")
        assert not renew()
    assert redis.get(LOCK_KEY) == "somebody else"
