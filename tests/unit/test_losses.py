"""Pool children that die: their runs are looked after at once, and nobody else's are."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from kombu import exceptions
from redis import Redis

from dispatcher import claims, ledger, losses, planning

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


def test_the_run_of_a_child_that_died_is_taken_back_now(book: ledger.RedisLedger) -> None:
    asked: list[str] = []
    claim = hold(book)
    assert due(book) == []
    losses.Losses(book, asked.append).note(claim, worker=WORKER)
    assert [action.claim.new for action in due(book)] == [claim]
    assert asked == [POOL]


def test_a_run_that_another_worker_executes_is_left_alone(book: ledger.RedisLedger) -> None:
    # A child may die over a message that was delivered twice.
    asked: list[str] = []
    losses.Losses(book, asked.append).note(hold(book, "another@host"), worker=WORKER)
    assert due(book) == []
    assert asked == []


def raised(error: Exception) -> Any:
    """What the pool makes of an error."""
    try:
        raise error
    except type(error):
        return ExceptionInfo()


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [(WorkerLostError("signal 9"), True), (Terminated(9), True), (ValueError("a fault"), False)],
)
def test_celery_tells_a_dead_child_from_a_task_that_failed(
    book: ledger.RedisLedger, error: Exception, is_lost: bool
) -> None:
    asked: list[str] = []
    claim = hold(book)

    class Bare:
        """What of Celery's own request is needed here."""

        args = (str(claim.flow_run_id), str(claim.claim_id))
        hostname = WORKER

        def on_failure(self, *_args: object, **_options: object) -> None:
            """Do nothing of Celery's own."""

    lost = losses.Losses(book, asked.append)
    made: Any = losses.request_class(lost, celery_request=Bare)
    made().on_failure(raised(error))
    assert asked == ([POOL] if is_lost else [])


def test_without_redis_the_lease_runs_out(
    no_redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    claim = claims.NewClaim(uuid4(), uuid4())
    away = ledger.RedisLedger(no_redis)
    losses.Losses(away, lambda _pool: None).note(claim, worker=WORKER)
    assert f"flow run {claim.flow_run_id} has lost its pool process" in caplog.text


def test_without_the_broker_the_next_tick_finds_it(book: ledger.RedisLedger) -> None:
    def fail(_pool: str) -> None:
        raise exceptions.OperationalError

    claim = hold(book)
    losses.Losses(book, fail).note(claim, worker=WORKER)
    assert [action.claim.new for action in due(book)] == [claim]
