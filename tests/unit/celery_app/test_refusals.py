"""How a worker takes what a broker refuses."""

from __future__ import annotations

import logging

import pytest

from dispatcher.celery_app import refusals

REFUSED = ValueError("the disk is full")


class Bare:
    """What of Celery's consumer is needed here."""

    connection_errors = (ConnectionError,)

    def __init__(self) -> None:
        self.told: list[Exception] = []

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Note it."""
        self.told.append(exc)

    on_connection_error_before_connected = on_connection_error_after_connected


class Consumer(refusals.WaitsWhenRefused, Bare):
    """Notes how long it would wait."""

    def __init__(self) -> None:
        super().__init__()
        self.waited: list[float] = []
        self.pause = self.waited.append  # type: ignore[assignment] # a method of an instance


@pytest.mark.parametrize("connected", [True, False])
def test_it_waits_before_it_asks_again(connected: bool, caplog: pytest.LogCaptureFixture) -> None:
    consumer = Consumer()
    when = "after" if connected else "before"
    getattr(consumer, f"on_connection_error_{when}_connected")(REFUSED)
    assert consumer.told == [REFUSED]
    assert consumer.waited == [refusals.SECONDS]
    # Otherwise Celery says it.
    assert ("the disk is full" in caplog.text) is connected


def test_for_a_lost_connection_celery_waits_itself(caplog: pytest.LogCaptureFixture) -> None:
    consumer = Consumer()
    caplog.set_level(logging.DEBUG)
    consumer.on_connection_error_after_connected(ConnectionError())
    consumer.on_connection_error_before_connected(ConnectionError())
    assert len(consumer.told) == 2
    assert consumer.waited == []
    assert caplog.text == ""
