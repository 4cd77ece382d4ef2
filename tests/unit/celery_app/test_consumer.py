"""The worker's consumer: when it sends events, and whom it tells of a cold shutdown."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from celery.concurrency import thread

from dispatcher.celery_app import consumer, dropped_messages
from tests.unit import celery_pools


class Hub:
    """An event loop whose timers a test lets go off, or loses."""

    def __init__(self) -> None:
        self.timers: list[tuple[float, Callable[[], None]]] = []

    def call_later(self, seconds: float, callback: Callable[[], None]) -> None:
        """Note a timer."""
        self.timers.append((seconds, callback))


class Bare:
    """What of Celery's own consumer is needed here."""

    class Blueprint:
        """Its steps."""

        default_steps = ("a:Tasks", "b:DelayedDelivery")

    def __init__(self, pool: object = None) -> None:
        self.hub: Hub | None = Hub()
        self.pool = pool
        self.hostname = "w@h"
        self.done: list[str] = []

    def _flush_events(self) -> None:
        self.done.append("flush")

    def cancel_active_requests(self) -> None:
        """Note it."""
        self.done.append("signal")

    def ensure_connected(self, conn: Any) -> Any:
        """As Celery's does."""
        return conn.ensure_connection("told of each try", 100)

    def stop(self) -> None:
        """Note it."""
        self.done.append("stop")


class World:
    """A consumer, its clock, and what the process' tasks were told."""

    def __init__(self, pool: object = None) -> None:
        self.now = 1000.0
        self.stopped: list[str] = []
        self.left: list[str] = []
        made: Any = consumer.consumer_class(
            lambda: self.stopped.append("stop"),
            self.left.append,
            dropped_messages.DroppedMessages(),
            celery_consumer=Bare,
            monotonic=lambda: self.now,
        )
        self.consumer = made(pool)


def test_nothing_is_declared_for_tasks_that_are_to_begin_later() -> None:
    assert World().consumer.Blueprint.default_steps == ["a:Tasks"]


def test_events_that_come_shortly_after_each_other_go_out_together() -> None:
    world = World()
    for _ in range(3):
        world.consumer.on_send_event_buffered()
    [(seconds, flush)] = world.consumer.hub.timers
    assert seconds == consumer.EVENTS_WAIT
    flush()
    assert world.consumer.done == ["flush"]


def test_a_timer_that_was_lost_with_the_connection_keeps_no_event_back_for_good() -> None:
    world = World()
    world.consumer.on_send_event_buffered()
    world.consumer.hub.timers.clear()
    world.now += consumer.EVENTS_WAIT
    world.consumer.on_send_event_buffered()
    assert len(world.consumer.hub.timers) == 1


def test_without_a_loop_there_is_nothing_to_wait_for() -> None:
    world = World()
    world.consumer.hub = None
    world.consumer.on_send_event_buffered()
    assert world.consumer.done == []


def test_what_waits_is_sent_before_the_consumer_stops() -> None:
    world = World()
    world.consumer.on_send_event_buffered()
    world.consumer.stop()
    assert world.consumer.done == ["flush", "stop"]


@pytest.mark.parametrize(
    ("pool_class", "is_signalled"), [(celery_pools.Processes, True), (thread.TaskPool, False)]
)
def test_a_cold_shutdown_reaches_processes_by_signal_and_threads_without(
    pool_class: type[Any], is_signalled: bool
) -> None:
    world = World(pool_class(1))
    world.consumer.cancel_active_requests()
    assert world.left == ["w@h"]
    assert world.consumer.done == (["signal"] if is_signalled else [])
    assert world.stopped == ([] if is_signalled else ["stop"])


def test_a_broker_that_is_away_is_looked_for_at_a_steady_pace() -> None:
    asked: list[tuple[tuple[object, ...], dict[str, object]]] = []

    class Broker:
        def get_transport_cls(self) -> type[object]:
            return object

        def ensure_connection(self, *args: object, **options: object) -> None:
            asked.append((args, options))

    World().consumer.ensure_connected(Broker())

    ((args, options),) = asked
    assert args == ("told of each try", 100)
    assert options == {"interval_step": 0, "interval_max": consumer.RECONNECT_SECONDS}
