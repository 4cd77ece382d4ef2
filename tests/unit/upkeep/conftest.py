"""Fixtures of the tests in this room."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest
from redis import Redis

from dispatcher.testing import prefect_api
from tests.unit.upkeep.recovery_scene import RecoveryScene


@pytest.fixture
def scene(
    prefect: prefect_api.FakePrefect, redis: Redis, caplog: pytest.LogCaptureFixture
) -> Iterator[RecoveryScene]:
    caplog.set_level(logging.INFO, logger="dispatcher")
    made = RecoveryScene(prefect, redis)
    yield made
    made.close()
