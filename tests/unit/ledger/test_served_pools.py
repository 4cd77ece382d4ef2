"""What a whole fleet serves, for those who look after all of it."""

from __future__ import annotations

from typing import Any

import pytest
from redis import Redis

from dispatcher.ledger import fleet, keys, served_pools


@pytest.fixture
def workers(redis: Redis) -> fleet.Fleet:
    return fleet.Fleet(redis)


def report(workers: fleet.Fleet, name: str, *pools: str, **values: Any) -> None:
    node = fleet.Node(name, 1, 2, serves_control=False, version="1", pools=pools, **values)
    workers.report(node)


def test_pools_of_other_workers_are_served_besides_ones_own(workers: fleet.Fleet) -> None:
    served = served_pools.ServedPools(workers, ["own"])
    assert (served.names(), served.live(), served.includes("b")) == (("own",), ("own",), False)
    report(workers, "w1", "b", "own")
    report(workers, "control")
    assert (served.names(), served.live()) == (("own", "b"), ("own", "b"))
    assert served.includes("b")
    assert served.includes("own")


def test_pools_are_looked_after_for_a_day_after_their_last_worker(
    workers: fleet.Fleet, redis: Redis
) -> None:
    served = served_pools.ServedPools(workers, [])
    report(workers, "w1", "b")
    workers.leave("w1:1")
    assert (served.names(), served.live()) == (("b",), ())
    redis.zincrby(f"{keys.PREFIX}pools", -fleet.POOL_LIFETIME - 10, "b")
    assert served.names() == ()


def test_work_queues_are_all_unless_every_worker_of_the_pool_serves_but_some(
    workers: fleet.Fleet,
) -> None:
    served = served_pools.ServedPools(workers, ["a"], ["mine"])
    assert served.queues() == {"a": ("mine",)}
    report(workers, "w1", "a", "b", work_queues=("gpu",))
    report(workers, "w2", "a", work_queues=("cpu", "gpu"))
    assert served.queues() == {"a": ("cpu", "gpu"), "b": ("gpu",)}
    report(workers, "w3", "b")
    assert served.queues() == {"a": ("cpu", "gpu"), "b": ()}


def test_a_worker_that_says_nothing_of_pools_adds_none(workers: fleet.Fleet) -> None:
    old = fleet.Node("old", 1, 2, serves_control=True, version="1")
    workers.report(old)
    assert old.serves("anything")
    assert served_pools.ServedPools(workers, ["a"]).queues() == {"a": ()}
