"""What a worker's main process makes of pool children that die, and of a revoke."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from billiard.einfo import ExceptionInfo
from billiard.exceptions import Terminated, WorkerLostError
from celery.concurrency import solo, thread
from celery.worker import state

from dispatcher.celery_app import execute_request, lost_children
from dispatcher.execution import run_places, time_limits
from dispatcher.ledger import claims, redis_ledger
from tests.unit import celery_pools

WORKER = "runs@host"
POOL = "pool"
LIMITS = time_limits.TimeLimits(grace_seconds=10.0)


class Bare:
    """What of Celery's own request is needed here."""

    type = "dispatcher.execute"
    _apply_result: object = None

    def __init__(self, claim: claims.NewClaim) -> None:
        self.args = (str(claim.flow_run_id), str(claim.claim_id))
        self.hostname = WORKER
        self.terminated: list[object] = []
        self.acknowledged = 0
        self.id = str(claim.claim_id)
        self.eventer = self
        self.done: list[object] = []

    def revoked(self) -> bool:
        """Never."""
        return False

    def acknowledge(self) -> None:
        """Note it."""
        self.acknowledged += 1

    def on_failure(
        self, _exc_info: object, send_failed_event: bool = True, return_ok: bool = False
    ) -> None:
        """Note whether Celery would tell of it."""
        self.done.append(("failed", send_failed_event))

    def flush(self) -> None:
        """As what sends its events would."""
        self.done.append("flushed")

    def on_timeout(self, soft: bool, timeout: float) -> None:
        """Do nothing of Celery's own."""

    def terminate(self, pool: object, signal: object = None) -> None:
        """Note what would have been signalled."""
        self.terminated.append((pool, signal))


def request_class(
    lost: lost_children.LostChildren,
    *,
    wake: Callable[[], None] = lambda: None,
    limits: time_limits.TimeLimits = LIMITS,
    places: run_places.RunPlaces | None = None,
) -> Any:
    return execute_request.request_class(
        lost, wake, limits, places or run_places.RunPlaces(), celery_request=Bare
    )


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
    book: redis_ledger.RedisLedger, error: Exception, is_lost: bool
) -> None:
    asked: list[str] = []
    claim = claims.NewClaim(uuid4(), uuid4())
    book.open([claim], pool=POOL, transition_id=uuid4(), slots=1)
    assert isinstance(book.acquire(claim, owner=f"{WORKER}#1"), claims.Lease)

    lost = lost_children.LostChildren(book, asked.append)
    made: Any = request_class(lost)
    request = made(claim)
    request.on_failure(raised(error))
    assert asked == ([POOL] if is_lost else [])
    # What becomes of a lost run is told by recovery, and after all else.
    assert request.done == ([("failed", False), "flushed"] if is_lost else [("failed", True)])


@pytest.mark.parametrize(
    ("pool_class", "is_signalled"),
    [(celery_pools.Processes, True), (thread.TaskPool, False), (solo.TaskPool, False)],
)
def test_a_revoke_wakes_tasks_that_no_signal_reaches(
    book: redis_ledger.RedisLedger, pool_class: type[Any], is_signalled: bool
) -> None:
    woken: list[str] = []
    lost = lost_children.LostChildren(book, lambda _pool: None)
    made: Any = request_class(lost, wake=lambda: woken.append("woken"))
    request = made(claims.NewClaim(uuid4(), uuid4()))
    pool = pool_class(1)

    request.terminate(pool, "SIGUSR2")

    assert request.terminated == ([(pool, "SIGUSR2")] if is_signalled else [])
    assert woken == ([] if is_signalled else ["woken"])


@pytest.mark.parametrize(
    ("soft", "hard", "given"),
    [
        (None, None, (None, None)),
        (2.0, None, (42.0, 2.0)),
        (None, 3.0, (43.0, 3.0)),
        (5.0, 3.0, (43.0, 3.0)),
    ],
)
def test_whichever_limit_comes_first_tells_the_task_and_the_pool_waits_for_it_to_stop(
    book: redis_ledger.RedisLedger,
    soft: float | None,
    hard: float | None,
    given: tuple[float | None, float | None],
) -> None:
    limits = time_limits.TimeLimits(grace_seconds=10.0, soft=soft, hard=hard)
    lost = lost_children.LostChildren(book, lambda _pool: None)
    made: Any = request_class(lost, limits=limits)
    request = made(claims.NewClaim(uuid4(), uuid4()))
    request.time_limits = (1, 1)  # as Celery does with those of a message
    assert request.time_limits == given


@pytest.mark.parametrize("soft", [True, False])
def test_a_task_that_did_not_stop_at_its_limit_is_given_up_when_the_pool_kills_it(
    book: redis_ledger.RedisLedger, soft: bool
) -> None:
    asked: list[str] = []
    claim = claims.NewClaim(uuid4(), uuid4())
    book.open([claim], pool=POOL, transition_id=uuid4(), slots=1)
    assert isinstance(book.acquire(claim, owner=f"{WORKER}#1"), claims.Lease)
    lost = lost_children.LostChildren(book, asked.append)
    made: Any = request_class(lost)
    made(claim).on_timeout(soft, 1.0)
    assert asked == ([] if soft else [POOL])


@pytest.fixture
def reserved() -> Iterator[set[Any]]:
    """What this worker has got and not ended, in a world where nobody else looks at it."""
    made: set[Any] = set()
    kept = {*state.reserved_requests}
    state.reserved_requests.clear()
    yield made
    state.reserved_requests.clear()
    for request in kept:
        state.reserved_requests.add(request)


@pytest.mark.parametrize(("limit", "begun"), [(None, 4), (2, 2), (0, 0)])
def test_a_worker_that_keeps_a_place_for_control_work_begins_no_more_runs_than_it_has_slots(
    book: redis_ledger.RedisLedger, reserved: set[Any], limit: int | None, begun: int
) -> None:
    lost = lost_children.LostChildren(book, lambda _pool: None)
    made = request_class(lost, places=run_places.RunPlaces(limit))
    for _ in range(4):
        request = made(claims.NewClaim(uuid4(), uuid4()))
        reserved.add(request)
        state.reserved_requests.add(request)
        if not request.revoked():
            request._apply_result = object()

    in_pool = [request for request in reserved if request._apply_result]
    forgotten = reserved.difference(in_pool)
    assert len(in_pool) == begun
    assert all(request.acknowledged == 1 for request in forgotten)
    assert not forgotten & set(state.reserved_requests)
