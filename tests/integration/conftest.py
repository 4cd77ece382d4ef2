"""Servers that some of the tests need besides Redis and Prefect."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import rabbitmq_server


@pytest.fixture(scope="session")
def rabbitmq() -> Iterator[rabbitmq_server.RabbitMQServer]:
    """A real RabbitMQ server, with a new virtual host for each stack."""
    if reason := rabbitmq_server.missing():
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="rabbitmq-") as directory,
        rabbitmq_server.RabbitMQServer(Path(directory)) as server,
    ):
        yield server
