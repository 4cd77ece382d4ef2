"""What beat says while the broker is away."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from celery import Celery, beat
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatcher.celery_app import broker_outage

WORDS = "beat can send no ticks until Redis is back"


class Broken(Celery):
    """An app that can send nothing."""

    error: Exception = RedisConnectionError("connection refused")

    def send_task(self, *_args: object, **_options: object) -> None:  # type: ignore[override]
        raise self.error


@pytest.fixture
def outage() -> Iterator[broker_outage.BrokerOutage]:
    made = broker_outage.BrokerOutage()
    logger = logging.getLogger(beat.__name__)
    logger.addFilter(made)
    yield made
    logger.removeFilter(made)


@pytest.fixture
def app() -> Iterator[Broken]:
    made = Broken("broken", set_as_current=False)
    made.conf.beat_schedule = {"tick": {"task": "tick", "schedule": 60.0}}
    yield made
    made.close()


def tick(app: Celery) -> None:
    scheduler = beat.Scheduler(app)
    scheduler.apply_entry(scheduler.schedule["tick"])


def test_the_first_tick_that_cannot_be_sent_is_one_line_and_the_others_none(
    app: Broken, outage: broker_outage.BrokerOutage, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(3):
        tick(app)
    [record] = caplog.records
    assert record.getMessage().startswith(WORDS)
    assert "connection refused" in record.getMessage()
    assert record.exc_info is None
    assert "\n" not in record.getMessage()


def test_the_next_outage_is_told_again(
    app: Broken, outage: broker_outage.BrokerOutage, caplog: pytest.LogCaptureFixture
) -> None:
    tick(app)
    outage.end()
    tick(app)
    assert [record.getMessage()[: len(WORDS)] for record in caplog.records] == [WORDS] * 2


def test_a_fault_of_ours_keeps_its_traceback(
    app: Broken, outage: broker_outage.BrokerOutage, caplog: pytest.LogCaptureFixture
) -> None:
    app.error = TypeError("not JSON")
    tick(app)
    [record] = caplog.records
    assert record.exc_info
