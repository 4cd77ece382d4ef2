"""How claims end: cancelled, closed, finished, expired; and messages sent again."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from dispatcher.ledger import claims, redis_ledger
from tests.unit import ledgers
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
    read,
    stage,
)

Book = claims.Ledger
Cancel = claims.CancelResult
Refusal = claims.Refusal
Renewal = claims.Renewal
Stage = claims.Stage

# Cancelling


def test_a_holder_is_asked_to_stop_once(book: Book) -> None:
    claim = open_claim(book)
    hold(book, claim)
    assert book.request_cancel(claim.flow_run_id) == (Cancel.MARKED, claim.claim_id)
    assert book.request_cancel(claim.flow_run_id) == (Cancel.WAITING, claim.claim_id)
    assert stage(book, claim) is Stage.HELD


@pytest.mark.parametrize("accepted", [True, False])
def test_a_claim_that_nobody_holds_is_closed_by_a_cancel(book: Book, accepted: bool) -> None:
    claim = open_claim(book)
    if accepted:
        book.accept(claim)
    assert book.request_cancel(claim.flow_run_id) == (Cancel.CLOSED, claim.claim_id)
    assert stage(book, claim) is Stage.CLOSED
    assert book.open_run_ids() == set()
    assert acquire(book, claim) is Refusal.CLOSED


def test_there_may_be_no_claim_to_cancel(book: Book) -> None:
    assert book.request_cancel(uuid4()) == (Cancel.ABSENT, None)
    claim = open_claim(book)
    close(book, claim)
    assert book.request_cancel(claim.flow_run_id) == (Cancel.ABSENT, claim.claim_id)


# Closing


def test_the_holder_alone_closes_a_held_claim(book: Book) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    assert not close(book, claim)
    assert not close(book, claim, lease.fence - 1)
    assert stage(book, claim) is Stage.HELD
    assert close(book, claim, lease.fence)
    assert stage(book, claim) is Stage.CLOSED
    assert book.open_run_ids() == set()


def test_a_claim_that_nobody_holds_is_closed_without_a_fence(book: Book) -> None:
    claim = open_claim(book)
    assert close(book, claim)
    assert stage(book, claim) is Stage.CLOSED


def test_a_claim_that_is_not_there_cannot_be_closed(book: Book) -> None:
    assert not close(book, new_claim())
    assert not close(book, new_claim(open_claim(book).flow_run_id))


@pytest.mark.parametrize("way", ["close", "cancel", "expire"])
def test_a_closed_claim_is_forgotten_after_a_while(
    book: Book, kit: ledgers.LedgerKit, way: str
) -> None:
    claim = open_claim(book)
    if way == "cancel":
        book.request_cancel(claim.flow_run_id)
    elif way == "expire":
        assert book.expire(read(book, claim), untouched_seconds=0)
    else:
        close(book, claim)
    kit.pass_time(redis_ledger.RETENTION_SECONDS - 60)
    assert acquire(book, claim) is Refusal.CLOSED
    kit.pass_time(61)
    assert acquire(book, claim) is Refusal.MISSING


def test_what_is_not_closed_is_never_forgotten(book: Book, kit: ledgers.LedgerKit) -> None:
    made = [open_claim(book) for _ in range(4)]
    book.accept(made[1])
    hold(book, made[2])
    assert book.finish(hold(book, made[3]), "outcome")
    kit.pass_time(10 * redis_ledger.RETENTION_SECONDS)
    assert len(book.open_claims()) == 4


# Sending again


def test_a_claim_that_waits_for_its_task_may_be_sent_again(
    book: Book, kit: ledgers.LedgerKit
) -> None:
    claim = open_claim(book)
    assert not book.resend(claim)  # Prefect may not have granted it
    book.accept(claim)
    kit.pass_time(60)
    assert book.resend(claim)
    assert book.resend(claim)
    kept = read(book, claim)
    assert (kept.stage, kept.resends) == (Stage.PENDING, 2)
    assert book.now() - kept.touched_at < 5


def test_what_has_begun_or_is_over_is_not_sent_again(book: Book) -> None:
    assert not book.resend(new_claim())
    claim = open_claim(book)
    book.accept(claim)
    assert not book.resend(new_claim(claim.flow_run_id))
    lease = hold(book, claim)
    assert not book.resend(claim)
    close(book, claim, lease.fence)
    assert not book.resend(claim)


# Finishing


def test_a_finished_claim_keeps_its_outcome_and_uses_no_slot(book: Book) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    assert book.finish(lease, "it ended")
    kept = read(book, claim)
    assert (kept.stage, kept.outcome, kept.fence) == (Stage.FINISHED, "it ended", lease.fence)
    assert book.open_run_ids() == set()
    assert book.open_claims() == [kept]
    # Nobody starts it, takes it for lost, or claims its run before the outcome is told.
    assert acquire(book, claim) is Refusal.FINISHED
    assert book.renew(lease) == (Renewal.LOST, False)
    assert book.request_cancel(claim.flow_run_id) == (Cancel.ABSENT, claim.claim_id)
    later = new_claim(claim.flow_run_id)
    assert book.open([later], pool=POOL, transition_id=uuid4(), slots=MANY) == []
    assert not close(book, claim)
    assert close(book, claim, lease.fence)
    assert book.open_claims() == []


def test_the_last_outcome_counts(book: Book) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    assert book.finish(lease, "first")
    assert book.finish(lease, "second")
    assert read(book, claim).outcome == "second"


def test_a_lease_that_moved_on_finishes_nothing(book: Book) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    assert not book.finish(replace(lease, fence=lease.fence - 1), "outcome")
    assert not book.finish(replace(lease, claim_id=uuid4()), "outcome")
    assert not book.finish(replace(lease, flow_run_id=uuid4()), "outcome")
    close(book, claim, lease.fence)
    assert not book.finish(lease, "outcome")
    assert read(book, claim).outcome == ""


# Expiring


def finish(book: Book, claim: claims.NewClaim) -> object:
    return book.finish(hold(book, claim), "outcome")


STAGES: list[list[Step]] = [[], [accept], [hold], [finish]]


@pytest.mark.parametrize("steps", STAGES, ids=["opened", "pending", "held", "finished"])
def test_a_claim_that_nobody_touched_for_too_long_can_be_taken_back(
    book: Book, kit: ledgers.LedgerKit, steps: list[Step]
) -> None:
    claim = open_claim(book)
    for step in steps:
        step(book, claim)
    seen = read(book, claim)
    kit.pass_time(9)
    assert not book.expire(seen, untouched_seconds=20)
    assert stage(book, claim) is seen.stage
    kit.pass_time(12)
    assert book.expire(seen, untouched_seconds=20)
    assert book.expire(seen, untouched_seconds=20)  # after a lost answer
    assert stage(book, claim) is Stage.CLOSED
    assert book.open_run_ids() == set()
    assert book.open_claims() == []


def test_a_claim_that_moved_on_since_it_was_read_is_not_taken_back(
    book: Book, kit: ledgers.LedgerKit
) -> None:
    claim = open_claim(book)
    opened = read(book, claim)
    book.accept(claim)
    pending = read(book, claim)
    lease = hold(book, claim)
    held = read(book, claim)
    kit.pass_time(100)
    assert not book.expire(opened, untouched_seconds=20)
    assert not book.expire(pending, untouched_seconds=20)
    assert not book.expire(replace(held, fence=held.fence - 1), untouched_seconds=20)
    book.renew(lease)
    assert not book.expire(held, untouched_seconds=20)
    assert stage(book, claim) is Stage.HELD
    close(book, claim, lease.fence)
    later = open_claim(book, claim.flow_run_id)
    kit.pass_time(100)
    assert not book.expire(held, untouched_seconds=20)
    assert stage(book, later) is Stage.OPENED
    kit.flush()
    assert not book.expire(held, untouched_seconds=20)
