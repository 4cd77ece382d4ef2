"""What a worker's main process makes of pool children that die, and of a revoke."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery.concurrency import solo, thread

from dispatcher import claims, ledger, losses, requests
from tests.unit import celery_pools

WORKER = "runs@host"
POOL = "pool"


class Bare:
    """What of Celery's own request is needed here."""

    def __init__(self, claim: claims.NewClaim) -> None:
        self.args = (str(claim.flow_run_id), str(claim.claim_id))
        self.hostname = WORKER
        self.terminated: list[object] = []

    def on_failure(self, *_args: object, **_options: object) -> None:
        """Do nothing of Celery's own."""

    def terminate(self, pool: object, signal: object = None) -> None:
        """Note what would have been signalled."""
        self.terminated.append((pool, signal))


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
    claim = claims.NewClaim(uuid4(), uuid4())
    book.open([claim], pool=POOL, transition_id=uuid4(), slots=1)
    assert isinstance(book.acquire(claim, owner=f"{WORKER}#1"), claims.Lease)

    lost = losses.Losses(book, asked.append)
    made: Any = requests.request_class(lost, lambda: None, celery_request=Bare)
    made(claim).on_failure(raised(error))
    assert asked == ([POOL] if is_lost else [])


@pytest.mark.parametrize(
    ("pool_class", "is_signalled"),
    [(celery_pools.Processes, True), (thread.TaskPool, False), (solo.TaskPool, False)],
)
def test_a_revoke_wakes_tasks_that_no_signal_reaches(
    book: ledger.RedisLedger, pool_class: type[Any], is_signalled: bool
) -> None:
    woken: list[str] = []
    lost = losses.Losses(book, lambda _pool: None)
    made: Any = requests.request_class(lost, lambda: woken.append("woken"), celery_request=Bare)
    request = made(claims.NewClaim(uuid4(), uuid4()))
    pool = pool_class(1)

    request.terminate(pool, "SIGUSR2")

    assert request.terminated == ([(pool, "SIGUSR2")] if is_signalled else [])
    assert woken == ([] if is_signalled else ["woken"])
