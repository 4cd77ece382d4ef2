"""A pool process whose last result is never counted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import billiard
import pytest
from billiard import pool

from dispatcher.celery_app import pool_exit


@pytest.fixture
def shortened() -> Iterator[None]:
    kept = pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT
    pool_exit.shorten_farewell()
    yield
    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = kept


@pytest.mark.usefixtures("shortened")
@pytest.mark.parametrize("counted", [0, 3])
def test_a_pool_process_does_not_stay_for_a_result_that_nobody_counts(counted: int) -> None:
    worker: Any = pool.Worker.__new__(pool.Worker)
    worker.on_ready_counter = billiard.Value("i", counted)
    begun = time.monotonic()
    assert worker._ensure_messages_consumed(3) is (counted == 3)
    assert time.monotonic() - begun < 3 * pool_exit.FAREWELL_SECONDS
