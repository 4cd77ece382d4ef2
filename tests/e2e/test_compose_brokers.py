"""The stack of ``docker-compose.brokers.yml``: RabbitMQ, and a Redis behind Sentinels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from docker.models.containers import Container

from tests import waiting
from tests.e2e import compose

FILES = ("docker-compose.yml", "docker-compose.brokers.yml")


@pytest.fixture(scope="module")
def stack() -> Iterator[compose.Stack]:
    own = compose.Stack(files=FILES, RABBITMQ_PASSWORD="rabbit")
    try:
        own.up()
        yield own
    finally:
        own.down()


def output_of(container: Container, command: list[str]) -> str:
    output = container.exec_run(command).output
    assert isinstance(output, bytes)
    return output.decode()


def test_the_samples_run_also_when_the_primary_of_redis_is_lost(stack: compose.Stack) -> None:
    printed = stack.compose("run", "--rm", "samples")
    assert printed.count("Completed\n") == 3, printed

    [primary] = stack.containers("redis")
    primary.stop(timeout=1)
    [sentinel] = stack.containers("sentinel-1")
    [replica] = stack.containers("replica")
    address = replica.attrs["NetworkSettings"]["Networks"][stack.network]["IPAddress"]
    asked = ["redis-cli", "-p", "26379", "sentinel", "get-master-addr-by-name", "prime"]
    waiting.wait_for(
        lambda: address in output_of(sentinel, asked),
        seconds=60,
        what="the replica is the primary",
    )

    # Not by Compose's run, which would start the old primary first.
    [control] = stack.containers("control")
    script = ["python", "/opt/dispatcher/examples/run_samples.py", "default"]
    again = output_of(control, script)
    assert again.count("Completed\n") == 3, again + stack.logs()
