from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from dispatcher.ledger import fleet
from dispatcher.standalone import ports
from dispatcher.standalone.celery import CeleryProcesses
from tests import redis_server

NAME = f"runs@{socket.gethostname()}"


@pytest.fixture
def redis_url(tcp_redis: redis_server.RedisServer) -> str:
    return tcp_redis.new_url()


@pytest.fixture
def workers(redis_url: str) -> Iterator[fleet.Fleet]:
    with redis.Redis.from_url(redis_url, decode_responses=True) as client:
        yield fleet.Fleet(client)


def node(name: str, pid: int = 1) -> fleet.Node:
    return fleet.Node(name=name, pid=pid, slots=1, serves_control=False, version="0")


def processes(redis_url: str, directory: Path) -> CeleryProcesses:
    return CeleryProcesses(environment={}, directory=directory, redis_url=redis_url)


def test_worker_is_ready_once_it_has_signed_on(
    redis_url: str, workers: fleet.Fleet, tmp_path: Path
) -> None:
    component = processes(redis_url, tmp_path).run_worker(1, 5.0)
    workers.report(node("other@host"))
    assert not component.is_ready()

    workers.report(node(NAME))

    assert component.is_ready()


def test_killed_worker_does_not_count_as_its_successor(
    redis_url: str, workers: fleet.Fleet, tmp_path: Path
) -> None:
    component = processes(redis_url, tmp_path).run_worker(1, 5.0)
    workers.report(node(NAME, pid=1))
    workers.report(node("other@host", pid=2))

    component.prepare()

    assert not component.is_ready()
    assert [each.name for each in workers.nodes()] == ["other@host"]


def test_worker_can_be_prepared_while_redis_is_away(tmp_path: Path) -> None:
    url = f"redis://127.0.0.1:{ports.free_port()}/0"
    component = processes(url, tmp_path).run_worker(1, 5.0)

    component.prepare()

    assert not component.is_ready()


def test_control_worker_is_ready_once_it_serves(
    redis_url: str, workers: fleet.Fleet, tmp_path: Path
) -> None:
    serving = iter([False, True])
    component = processes(redis_url, tmp_path).control_worker(lambda: next(serving))
    workers.report(node(NAME.replace("runs", "control")))

    assert not component.is_ready()
    assert component.is_ready()


@pytest.mark.parametrize("suffix", ["", ".dat", ".db"])
def test_beat_is_ready_once_it_has_written_its_schedule(tmp_path: Path, suffix: str) -> None:
    schedule = tmp_path / "schedule"
    written = schedule.with_name(f"schedule{suffix}")
    component = processes("redis://unused", tmp_path).beat(schedule)
    written.touch()

    component.prepare()
    assert not component.is_ready()

    written.touch()
    assert component.is_ready()
