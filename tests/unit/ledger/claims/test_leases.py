"""Leases: acquired, renewed, restored, given up; the fence."""

from __future__ import annotations

from dataclasses import replace
from uuid import uuid4

import pytest

from dispatcher.ledger import claims
from tests.unit import ledgers
from tests.unit.ledger.claims.claim_steps import (
    POOL,
    acquire,
    close,
    hold,
    new_claim,
    open_claim,
    read,
    stage,
)

Book = claims.Ledger
Refusal = claims.Refusal
Renewal = claims.Renewal
Stage = claims.Stage

# A holder that is known to be dead


def test_a_lease_whose_holder_is_dead_is_over_at_once(book: Book) -> None:
    claim = open_claim(book)
    hold(book, claim, "runs@host#1")
    held = read(book, claim)
    assert not book.expire(held, untouched_seconds=20)
    assert book.forfeit(claim, node="runs@host") == POOL
    assert stage(book, claim) is Stage.HELD
    assert book.expire(held, untouched_seconds=20)
    assert stage(book, claim) is Stage.CLOSED


def test_a_lease_that_somebody_else_holds_is_not_given_up(book: Book) -> None:
    claim = open_claim(book)
    assert book.forfeit(claim, node="runs@host") is None
    hold(book, claim, "runs@host#1")
    before = read(book, claim)
    for node in ("runs@host2", "runs@hos", "runs@host#1", ""):
        assert book.forfeit(claim, node=node) is None
    assert book.forfeit(new_claim(claim.flow_run_id), node="runs@host") is None
    assert book.forfeit(new_claim(), node="runs@host") is None
    assert read(book, claim) == before


def test_a_claim_that_is_closed_cannot_be_given_up(book: Book) -> None:
    claim = open_claim(book)
    lease = hold(book, claim, "runs@host#1")
    assert close(book, claim, lease.fence)
    assert book.forfeit(claim, node="runs@host") is None


# Acquiring and renewing


@pytest.mark.parametrize("accepted", [True, False])
def test_the_first_delivery_gets_the_lease(
    book: Book, kit: ledgers.LedgerKit, accepted: bool
) -> None:
    claim, transition_id = new_claim(), uuid4()
    book.open([claim], pool=POOL, transition_id=transition_id, slots=1)
    if accepted:
        book.accept(claim)
    kit.pass_time(60)
    lease = hold(book, claim)
    assert lease == claims.Lease(
        flow_run_id=claim.flow_run_id,
        claim_id=claim.claim_id,
        pool=POOL,
        owner="a",
        fence=lease.fence,
        transition_id=transition_id,
        attempt=1,
    )
    kept = book.get(claim.flow_run_id)
    assert kept is not None
    assert (kept.stage, kept.owner, kept.fence) == (Stage.HELD, "a", lease.fence)
    assert abs(kept.touched_at - book.now()) < 5


def test_other_deliveries_are_refused_and_told_why(book: Book) -> None:
    claim = open_claim(book)
    assert acquire(book, new_claim()) is Refusal.MISSING
    assert acquire(book, new_claim(claim.flow_run_id)) is Refusal.SUPERSEDED
    lease = hold(book, claim, owner="a")
    assert acquire(book, claim, owner="b") is Refusal.HELD
    close(book, claim, lease.fence)
    assert acquire(book, claim, owner="a") is Refusal.CLOSED
    assert acquire(book, claim, owner="b") is Refusal.CLOSED


def test_a_message_of_an_earlier_attempt_is_refused(book: Book) -> None:
    first = open_claim(book)
    close(book, first)
    open_claim(book, first.flow_run_id)
    assert acquire(book, first) is Refusal.SUPERSEDED
    assert not book.accept(first)
    assert not close(book, first)


def test_a_cancel_shows_in_a_lease_that_is_asked_for_again(book: Book) -> None:
    claim = open_claim(book)
    assert not hold(book, claim).cancel_requested
    book.request_cancel(claim.flow_run_id)
    assert hold(book, claim).cancel_requested


def test_a_renewal_shows_that_the_holder_lives_and_tells_of_a_cancel(
    book: Book, kit: ledgers.LedgerKit
) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    kit.pass_time(100)
    assert book.now() - read(book, claim).touched_at > 99
    assert book.renew(lease) == (Renewal.HELD, False)
    assert book.now() - read(book, claim).touched_at < 5
    book.request_cancel(claim.flow_run_id)
    assert book.renew(lease) == (Renewal.HELD, True)


def test_a_renewal_tells_what_the_job_uses_and_one_that_does_not_know_leaves_it(book: Book) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    assert read(book, claim).memory is None
    book.renew(lease, memory=2**33)
    assert read(book, claim).memory == 2**33
    book.renew(lease)
    assert read(book, claim).memory == 2**33


def test_a_lease_that_moved_on_is_lost(book: Book) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    assert book.renew(replace(lease, fence=lease.fence - 1)) == (
        Renewal.LOST,
        False,
    )
    close(book, claim, lease.fence)
    assert book.renew(lease) == (Renewal.LOST, False)
    later = hold(book, open_claim(book, claim.flow_run_id))
    assert book.renew(lease) == (Renewal.LOST, False)
    assert book.renew(later) == (Renewal.HELD, False)


def test_a_lease_of_a_flushed_ledger_is_missing_not_lost(
    book: Book, kit: ledgers.LedgerKit
) -> None:
    lease = hold(book, open_claim(book))
    kit.flush()
    assert book.renew(lease) == (Renewal.MISSING, False)


# The fence


def test_the_fence_grows_from_claim_to_claim(book: Book) -> None:
    run_id, fences = uuid4(), []
    for _ in range(5):
        claim = open_claim(book, run_id)
        lease = hold(book, claim)
        fences.append(lease.fence)
        close(book, claim, lease.fence)
    assert fences == sorted(set(fences))


def test_the_fence_grows_past_a_flushed_ledger(book: Book, kit: ledgers.LedgerKit) -> None:
    run_id = uuid4()
    before = hold(book, open_claim(book, run_id))
    kit.flush()
    kit.pass_time(1)
    after = hold(book, open_claim(book, run_id))
    assert after.fence > before.fence


def test_the_fence_grows_even_if_the_clock_was_set_back(book: Book, kit: ledgers.LedgerKit) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    kit.pass_time(-1000)
    ahead = read(book, claim).fence
    assert close(book, claim, ahead)
    assert hold(book, open_claim(book, claim.flow_run_id)).fence == ahead + 1
    assert ahead >= lease.fence


# Restoring


def test_a_holder_brings_its_lease_back_into_a_ledger_that_lost_it(
    book: Book, kit: ledgers.LedgerKit
) -> None:
    claim = open_claim(book)
    lease = hold(book, claim)
    before = read(book, claim)
    kit.flush()
    assert book.restore(lease)
    after = read(book, claim)
    assert replace(after, opened_at=0, touched_at=0) == replace(before, opened_at=0, touched_at=0)
    assert abs(after.touched_at - book.now()) < 5
    assert book.open_run_ids() == {claim.flow_run_id}
    assert book.restore(lease)
    assert book.renew(lease) == (Renewal.HELD, False)
    assert close(book, claim, lease.fence)


def test_a_lease_that_somebody_else_has_by_now_cannot_be_brought_back(
    book: Book, kit: ledgers.LedgerKit
) -> None:
    lease = hold(book, open_claim(book))
    kit.flush()
    later = open_claim(book, lease.flow_run_id)
    assert not book.restore(lease)
    assert stage(book, later) is Stage.OPENED
    hold(book, later)
    assert not book.restore(lease)


def test_a_lease_whose_claim_is_closed_or_finished_cannot_be_brought_back(book: Book) -> None:
    lease = hold(book, open_claim(book))
    assert book.finish(lease, "outcome")
    assert not book.restore(lease)
    assert close(book, claims.NewClaim(lease.flow_run_id, lease.claim_id), lease.fence)
    assert not book.restore(lease)


# Owners


def test_a_claim_knows_the_worker_that_holds_it(book: Book) -> None:
    claim = open_claim(book)
    assert read(book, claim).node == ""
    hold(book, claim, owner="runs#1@host#0b1c")
    assert read(book, claim).node == "runs#1@host"
    assert read(book, claim).new == claim
