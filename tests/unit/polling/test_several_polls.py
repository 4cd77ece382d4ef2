"""Several polls of one pool, and what nudges them."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from uuid import UUID

from dispatcher.ledger import (
    keys,
    locks,
)
from tests.unit.polling.polling_scene import BULK, POLL, POOL, Scene


@contextmanager
def another_poll(scene: Scene) -> Iterator[None]:
    with locks.Locks(scene.redis).hold(f"poll:{POOL}", lease_seconds=60) as held:
        assert held
        yield


def test_a_poll_beside_another_does_nothing(scene: Scene) -> None:
    scene.runs(1)
    scene.prefect.requests.clear()
    with another_poll(scene):
        assert scene.poll() == 0
    assert scene.prefect.requests.total() == 0
    assert scene.poll() == 1


def test_a_nudge_that_comes_during_a_poll_is_served_by_it(scene: Scene) -> None:
    scene.runs(1)
    later: list[UUID] = []

    def finish_another_run(_: UUID) -> None:
        if not later:
            later.extend(scene.runs(1))
            scene.calls.nudge(POOL)
            assert scene.poll() == 0  # the poll that the nudge sent finds the lock taken

    scene.on_publish = finish_another_run
    assert scene.poll() == 2
    assert scene.published_ids()[1:] == later
    assert not scene.calls.is_waiting(POOL)


def test_a_nudge_from_before_a_poll_makes_it_no_longer(scene: Scene) -> None:
    scene.calls.nudge(POOL)
    scene.poll()
    assert scene.asked(POLL) == 1
    assert not scene.calls.is_waiting(POOL)


def test_a_nudge_is_left_to_another_poll_that_was_quicker_to_the_lock(scene: Scene) -> None:
    class Overtaken(locks.Locks):
        @contextmanager
        def hold(self, name: str, *, lease_seconds: float) -> Iterator[bool]:
            with super().hold(name, lease_seconds=lease_seconds) as held:
                yield held
                scene.calls.nudge(POOL)
            scene.redis.set(f"{keys.PREFIX}lock:{name}", "another poll", nx=True)

    scene.runs(1)
    assert scene.poll(mutex=Overtaken(scene.redis)) == 1
    assert scene.calls.is_waiting(POOL)


def test_endless_nudges_are_left_to_a_new_poll_after_a_while(scene: Scene) -> None:
    scene.set_slots(100)
    scene.runs(1)
    times = iter(range(1000))

    def finish_another_run(_: UUID) -> None:
        scene.runs(1)
        scene.calls.nudge(POOL)

    scene.on_publish = finish_another_run
    claimed = scene.poll(monotonic=lambda: float(next(times)), stay_seconds=10.0)
    assert claimed == 10
    assert scene.asked_for == [POOL]  # by the poll itself, for what is left to do
    assert scene.calls.is_waiting(POOL)


def test_refused_runs_are_passed_over_however_long_that_takes(scene: Scene) -> None:
    scene.set_slots(1)
    hours = iter(range(0, 360_000, 3600))
    limited = scene.objects.deployment(POOL, "limited", concurrency_limit=1)
    for _ in range(2):
        scene.objects.run(limited)
    scene.poll()  # the server counts that run, though its slot is free again
    scene.book.close(scene.published[0][1])
    free = scene.runs(1)
    assert scene.poll(monotonic=lambda: float(next(hours))) == 1
    assert scene.published_ids()[1:] == free


def test_a_poll_that_claimed_waits_a_little_for_runs_that_end(scene: Scene) -> None:
    scene.set_slots(1)
    first, second = scene.runs(2)

    def end(run_id: UUID) -> None:
        if run_id == first:
            threading.Timer(0.05, finish).start()

    def finish() -> None:
        scene.book.close(scene.published[0][1])
        scene.calls.nudge(POOL)

    scene.on_publish = end
    assert scene.poll(linger_seconds=10.0, stay_seconds=0.5) == 2
    assert scene.published_ids() == [first, second]
    assert scene.asked_for == []  # the poll at work has served the nudge


def test_a_poll_that_found_nothing_waits_for_nobody(scene: Scene) -> None:
    started = time.monotonic()
    assert scene.poll(linger_seconds=60.0, stay_seconds=60.0) == 0
    assert time.monotonic() - started < 30


def test_nudges_that_a_poll_cannot_serve_end_its_wait(scene: Scene) -> None:
    scene.set_slots(1)
    scene.runs(2)
    scene.on_publish = lambda _: scene.calls.nudge(POOL)
    assert scene.poll(linger_seconds=0.2, stay_seconds=60.0) == 1
    assert not scene.calls.is_waiting(POOL)


def test_two_pollers_on_two_machines_never_publish_a_run_twice(scene: Scene) -> None:
    # As after a lock that ran out: both work at once.
    scene.set_slots(100)
    run_ids = scene.runs(10)
    no_lock = NoLock(scene.redis)
    scene.before(POLL, lambda: None)
    scene.before(BULK, lambda: scene.poll(mutex=no_lock))
    scene.poll(mutex=no_lock)
    assert sorted(scene.published_ids()) == sorted(run_ids)


class NoLock(locks.Locks):
    """A lock that does not keep anybody out."""

    @contextmanager
    def hold(self, name: str, *, lease_seconds: float) -> Iterator[bool]:
        yield True
