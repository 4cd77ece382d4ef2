"""A Redis that answers but refuses what workers ask for: they wait until it is mended."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
import redis as redis_library

from dispatcher.celery_app import tasks
from dispatcher.prefect_api import schemas
from tests import light_jobs, redis_server, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType
Change = Callable[[redis_library.Redis], object]

SECONDS = 60.0
QUEUES = (tasks.CONTROL_QUEUE, tasks.RUNS_QUEUE)


def put_keys_in_the_way(redis: redis_library.Redis) -> None:
    for queue in QUEUES:
        redis.delete(queue)
        redis.set(queue, "not a list")


class Refusal(NamedTuple):
    """What of Redis is spoilt while a worker with a pool of this kind is there."""

    pool: str
    complaint: str
    begin: Change
    end: Change


FULL = Refusal(
    "prefork",
    "maxmemory",
    lambda redis: redis.config_set("maxmemory", "1"),
    lambda redis: redis.config_set("maxmemory", "0"),
)
WITHOUT_REPLICAS = Refusal(
    "threads",
    "NOREPLICAS",
    lambda redis: redis.config_set("min-replicas-to-write", "1"),
    lambda redis: redis.config_set("min-replicas-to-write", "0"),
)
IN_THE_WAY = Refusal(
    "prefork", "WRONGTYPE", put_keys_in_the_way, lambda redis: redis.delete(*QUEUES)
)


@pytest.mark.parametrize(
    "refusal",
    [FULL, WITHOUT_REPLICAS, IN_THE_WAY],
    ids=["full", "without-replicas", "wrong-type"],
)
def test_workers_outlive_it_and_so_do_their_runs(
    new_stack: NewStack, tmp_path: Path, refusal: Refusal
) -> None:
    with (
        redis_server.RedisServer(tmp_path) as server,
        redis_library.Redis.from_url(server.url) as redis,
        new_stack(redis_url=server.url) as stack,
    ):
        control = stack.control_worker()
        worker = stack.worker("runs", "-Q", tasks.RUNS_QUEUE, "-c", "2", "-P", refusal.pool)
        stack.wait_until_served(stack.pool)
        deployment = stack.deployment("none")
        gate = tmp_path / "gate"
        held = light_jobs.run(stack, deployment, "RUNNING", "note", f"wait:{gate}", "COMPLETED")
        light_jobs.wait_until_seen(held)
        refusal.begin(redis)
        due = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
        for each in (control, worker):
            waiting.wait_for(
                functools.partial(is_refused_again, each, refusal.complaint),
                seconds=SECONDS,
                what="it is refused, and tries again",
            )
        gate.touch()
        held.wait_for_end(seconds=SECONDS)
        refusal.end(redis)
        for run in (held, due):
            assert run.wait_for_end(seconds=SECONDS).type is State.COMPLETED
            assert len(light_jobs.seen(run)) == 1
        text = control.text() + worker.text()
        assert "Unrecoverable" not in text
        assert "Frequent restarts" not in text


def is_refused_again(worker: stacks.CeleryProcess, complaint: str) -> bool:
    """Whether a worker has been refused twice, by what it says."""
    lines = worker.text().splitlines()
    return sum(complaint in line for line in lines) >= 2
