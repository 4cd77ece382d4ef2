"""Pool children that die: their runs are looked after at once, and nobody else's are."""

from __future__ import annotations

from uuid import uuid4

import pytest
from kombu import exceptions
from redis import Redis

from dispatcher import planning
from dispatcher.celery_app import lost_children
from dispatcher.ledger import claims, redis_ledger

WORKER = "runs@host"
POOL = "pool"
LIMITS = planning.Limits(lease_seconds=15.0, infra_retries=3)


def hold(book: claims.Ledger, worker: str = WORKER) -> claims.NewClaim:
    claim = claims.NewClaim(uuid4(), uuid4())
    book.open([claim], pool=POOL, transition_id=uuid4(), slots=10)
    assert isinstance(book.acquire(claim, owner=f"{worker}#1"), claims.Lease)
    return claim


def due(book: claims.Ledger) -> list[planning.Action]:
    open_claims = book.open_claims()
    return planning.plan_recovery(open_claims, now=book.now(), limits=LIMITS, leases_count=True)


def test_the_run_of_a_child_that_died_is_taken_back_now(book: redis_ledger.RedisLedger) -> None:
    asked: list[str] = []
    claim = hold(book)
    assert due(book) == []
    lost_children.LostChildren(book, asked.append).note(claim, worker=WORKER)
    assert [action.claim.new for action in due(book)] == [claim]
    assert asked == [POOL]


def test_a_run_that_another_worker_executes_is_left_alone(book: redis_ledger.RedisLedger) -> None:
    # A child may die over a message that was delivered twice.
    asked: list[str] = []
    lost_children.LostChildren(book, asked.append).note(hold(book, "another@host"), worker=WORKER)
    assert due(book) == []
    assert asked == []


def test_without_redis_the_lease_runs_out(
    no_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    claim = claims.NewClaim(uuid4(), uuid4())
    away = redis_ledger.RedisLedger(no_redis)
    lost_children.LostChildren(away, lambda _pool: None).note(claim, worker=WORKER)
    assert f"flow run {claim.flow_run_id} has lost its pool process" in caplog.text


def test_without_the_broker_the_next_tick_finds_it(book: redis_ledger.RedisLedger) -> None:
    def fail(_pool: str) -> None:
        raise exceptions.OperationalError

    claim = hold(book)
    lost_children.LostChildren(book, fail).note(claim, worker=WORKER)
    assert [action.claim.new for action in due(book)] == [claim]
