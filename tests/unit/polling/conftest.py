"""Fixtures of the tests in this room."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from dispatcher.testing import prefect_api
from tests.unit.polling.polling_scene import Scene


@pytest.fixture
def scene(prefect: prefect_api.FakePrefect, redis: Redis) -> Iterator[Scene]:
    made = Scene(prefect, redis)
    made.set_slots(4)
    yield made
    made.api.transport.close()
    made.quiet_api.transport.close()
