"""Operations that are repeated after a lost answer, or done at once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from dataclasses import replace
from typing import TypeVar
from uuid import UUID, uuid4

import pytest

from dispatcher.ledger import claims
from tests.unit.ledger.claims.claim_steps import (
    MANY,
    POOL,
    Step,
    accept,
    acquire,
    close,
    hold,
    new_claim,
    open_claim,
)

Book = claims.Ledger
Cancel = claims.CancelResult
Refusal = claims.Refusal
Renewal = claims.Renewal

T = TypeVar("T")


def together(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Make the calls at one moment, each in a thread of its own."""
    calls = list(calls)
    barrier = threading.Barrier(len(calls))

    def call(function: Callable[[], T]) -> T:
        barrier.wait(10)
        return function()

    with futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


# Lost answers


def reopen(book: Book, claim: claims.NewClaim) -> object:
    return book.open([claim], pool=POOL, transition_id=UUID(int=1), slots=1)


LEASE = claims.Lease(
    flow_run_id=UUID(int=2),
    claim_id=UUID(int=3),
    pool=POOL,
    owner="a",
    fence=1,
    transition_id=UUID(int=1),
    attempt=1,
)


@pytest.mark.parametrize(
    "before",
    [
        [],
        [reopen],
        [reopen, accept],
        [reopen, hold],
    ],
)
@pytest.mark.parametrize(
    "operation",
    [
        reopen,
        accept,
        acquire,
        close,
        lambda book, claim: book.close(claim, fence=1),
        lambda book, claim: book.restore(replace(LEASE, claim_id=claim.claim_id)),
        lambda book, claim: book.finish(replace(LEASE, claim_id=claim.claim_id), "outcome"),
        lambda book, claim: book.renew(replace(LEASE, claim_id=claim.claim_id)),
    ],
    ids=[
        "open",
        "accept",
        "acquire",
        "close",
        "close-with-fence",
        "restore",
        "finish",
        "renew",
    ],
)
def test_an_operation_whose_answer_was_lost_gives_it_again(
    book: Book, before: list[Step], operation: Step
) -> None:
    claim = new_claim(LEASE.flow_run_id)
    for step in before:
        step(book, claim)
    assert operation(book, claim) == operation(book, claim)


def test_a_claim_that_was_closed_stays_closed_when_its_holder_repeats_itself(
    book: Book,
) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    assert close(book, claim, lease.fence)
    assert close(book, claim, lease.fence)
    assert acquire(book, claim) is Refusal.CLOSED


def test_a_repeated_open_uses_no_second_slot(book: Book) -> None:
    made = [new_claim(), new_claim()]
    transition_id = uuid4()
    for _ in range(3):
        assert book.open(made, pool=POOL, transition_id=transition_id, slots=2) == made
    assert [claim.attempt for claim in book.open_claims()] == [1, 1]


# In parallel


def test_parallel_openers_never_open_more_claims_than_slots(book: Book) -> None:
    batches = [[new_claim() for _ in range(5)] for _ in range(8)]
    opened = together(
        lambda batch=batch: book.open(batch, pool=POOL, transition_id=uuid4(), slots=12)  # type: ignore[misc]
        for batch in batches
    )
    assert sum(len(made) for made in opened) == 12
    assert len(book.open_run_ids()) == 12


def test_parallel_openers_never_both_get_a_run(book: Book) -> None:
    run_ids = [uuid4() for _ in range(20)]
    batches = [[new_claim(run_id) for run_id in run_ids] for _ in range(6)]
    opened = together(
        lambda batch=batch: book.open(batch, pool=POOL, transition_id=uuid4(), slots=MANY)  # type: ignore[misc]
        for batch in batches
    )
    winners = [claim for made in opened for claim in made]
    assert sorted(claim.flow_run_id for claim in winners) == sorted(run_ids)
    assert {claim.claim_id for claim in winners} == {claim.claim_id for claim in book.open_claims()}


def test_of_parallel_deliveries_one_gets_the_lease(book: Book) -> None:
    for _ in range(10):
        claim = open_claim(book)
        answers = together(
            lambda owner=str(number): acquire(book, claim, owner)  # type: ignore[misc]  # noqa: B023
            for number in range(6)
        )
        leases = [answer for answer in answers if isinstance(answer, claims.Lease)]
        assert len(leases) == 1
        assert answers.count(Refusal.HELD) == 5


def test_a_claim_is_never_both_closed_by_a_cancel_and_acquired(book: Book) -> None:
    seen = set()
    for _ in range(60):
        claim = open_claim(book)
        answers: list[object] = together(
            [
                lambda: acquire(book, claim),  # noqa: B023
                lambda: book.request_cancel(claim.flow_run_id)[0],  # noqa: B023
            ]
        )
        acquired, cancelled = answers
        if isinstance(acquired, claims.Lease):
            assert cancelled is Cancel.MARKED
            assert book.renew(acquired) == (Renewal.HELD, True)
        else:
            assert acquired is Refusal.CLOSED
            assert cancelled is Cancel.CLOSED
        seen.add(cancelled)
    assert seen <= {Cancel.MARKED, Cancel.CLOSED}
