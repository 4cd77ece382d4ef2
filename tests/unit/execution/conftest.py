"""Fixtures of the tests in this room."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from redis import Redis

from dispatcher.testing import prefect_api
from tests.unit import parts


@pytest.fixture
def scene(
    prefect: prefect_api.FakePrefect, redis: Redis, caplog: pytest.LogCaptureFixture
) -> Iterator[parts.Scene]:
    caplog.set_level(logging.INFO, logger="dispatcher")
    made = parts.Scene(prefect, redis)
    yield made
    made.close()
