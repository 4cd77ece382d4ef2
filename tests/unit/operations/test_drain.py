"""What a drain waits for."""

from __future__ import annotations

from uuid import uuid4

import pytest
import redis as redis_library

from dispatcher.ledger import claims, fleet, keys, redis_ledger
from dispatcher.operations import drain, status
from dispatcher.prefect_api import client
from dispatcher.testing import prefect_objects

OLD = fleet.Node("old@h", 1, slots=2, serves_control=False, version="0")
NEW = fleet.Node("new@h", 2, slots=2, serves_control=False, version="1", pools=("a",))


def opened(book: redis_ledger.RedisLedger, node: str) -> claims.NewClaim:
    new = claims.NewClaim(uuid4(), uuid4())
    assert book.open([new], pool="a", transition_id=uuid4(), slots=9, node=node)
    return new


def held_by_an_earlier_version(
    redis: redis_library.Redis, book: redis_ledger.RedisLedger, *, meant_for: str
) -> None:
    """A claim of ``OLD``, whose version notes the owner alone."""
    new = opened(book, meant_for)
    assert book.accept(new)
    for field, value in (("stage", "held"), ("owner", f"{OLD.name}#{uuid4()}"), ("fence", "1")):
        redis.hset(f"{keys.PREFIX}claim:{new.flow_run_id}", field, value)


@pytest.fixture
def work(redis: redis_library.Redis, book: redis_ledger.RedisLedger) -> drain.Drain:
    workers = fleet.Fleet(redis)
    for node in (OLD, NEW):
        workers.report(node)
    return drain.Drain(workers, book)


def test_runs_on_their_way_to_a_worker_are_waited_for(
    work: drain.Drain, book: redis_ledger.RedisLedger
) -> None:
    opened(book, NEW.name)
    assert book.accept(opened(book, NEW.name))
    assert work.running([OLD, NEW]) == {"old@h": 0, "new@h": 2}


def test_a_run_that_has_ended_is_not_waited_for(
    work: drain.Drain, book: redis_ledger.RedisLedger
) -> None:
    new = opened(book, NEW.name)
    assert book.accept(new)
    lease = book.acquire(new, owner=f"{NEW.name}#1")
    assert isinstance(lease, claims.Lease)
    assert work.running([NEW]) == {"new@h": 1}
    assert book.finish(lease, "{}")
    assert work.running([NEW]) == {"new@h": 0}


@pytest.mark.parametrize("meant_for", [claims.ANYBODY, "gone@h", NEW.name])
def test_a_run_on_a_worker_of_an_earlier_version_is_waited_for_there(
    work: drain.Drain,
    redis: redis_library.Redis,
    book: redis_ledger.RedisLedger,
    meant_for: str,
) -> None:
    held_by_an_earlier_version(redis, book, meant_for=meant_for)
    assert work.running([OLD, NEW]) == {"old@h": 1, "new@h": 0}


@pytest.mark.parametrize("meant_for", [claims.ANYBODY, "gone@h"])
@pytest.mark.usefixtures("work")
def test_a_run_that_is_meant_for_no_live_worker_takes_a_slot_where_it_is(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
    book: redis_ledger.RedisLedger,
    meant_for: str,
) -> None:
    objects.pool("a")
    held_by_an_earlier_version(redis, book, meant_for=meant_for)
    found = status.get_status(api=api, redis=redis, pools=["a"])
    assert [(each.name, each.used) for each in found.workers or ()] == [("new@h", 0), ("old@h", 1)]
