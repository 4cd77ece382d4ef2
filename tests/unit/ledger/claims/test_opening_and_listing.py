"""How claims are opened, counted, listed and accepted."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

import pytest
from redis import Redis

from dispatcher.ledger import claims, keys, redis_ledger
from tests.unit import ledgers
from tests.unit.ledger.claims.claim_steps import (
    MANY,
    POOL,
    close,
    hold,
    new_claim,
    open_claim,
    read,
    stage,
)

Book = claims.Ledger
Stage = claims.Stage

# Opening


def test_an_opened_claim_can_be_read_back(book: Book, kit: ledgers.LedgerKit) -> None:
    claim, transition_id = new_claim(), uuid4()
    assert book.open([claim], pool=POOL, transition_id=transition_id, slots=1) == [claim]
    kept = book.get(claim.flow_run_id)
    assert kept is not None
    assert abs(kept.opened_at - book.now()) < 5
    assert kept.touched_at == kept.opened_at
    assert replace(kept, opened_at=0, touched_at=0) == claims.Claim(
        flow_run_id=claim.flow_run_id,
        claim_id=claim.claim_id,
        pool=POOL,
        transition_id=transition_id,
        stage=Stage.OPENED,
        attempt=1,
        opened_at=0,
        touched_at=0,
    )


def test_nothing_is_asked_of_redis_for_no_claims(no_redis: Redis) -> None:
    book = redis_ledger.RedisLedger(no_redis)
    assert book.open([], pool=POOL, transition_id=uuid4(), slots=1) == []


def test_a_run_without_a_claim_has_none(book: Book) -> None:
    assert book.get(uuid4()) is None


def test_claims_are_opened_in_the_order_given_until_the_slots_are_used_up(
    book: Book,
) -> None:
    made = [new_claim() for _ in range(5)]
    opened = book.open(made, pool=POOL, transition_id=uuid4(), slots=3)
    assert opened == made[:3]
    assert book.open(made[3:], pool="other", transition_id=uuid4(), slots=3) == []
    assert book.open(made[3:], pool="other", transition_id=uuid4(), slots=4) == [made[3]]


def test_no_claim_is_opened_when_the_fleet_has_shrunk(book: Book) -> None:
    open_claim(book)
    assert book.open([new_claim()], pool=POOL, transition_id=uuid4(), slots=0) == []


def test_a_run_has_one_open_claim_at_most(book: Book) -> None:
    first = open_claim(book)
    second = new_claim(first.flow_run_id)
    free = new_claim()
    assert book.open([second, free], pool=POOL, transition_id=uuid4(), slots=MANY) == [free]
    kept = book.get(first.flow_run_id)
    assert kept is not None
    assert kept.claim_id == first.claim_id


def test_a_claim_that_was_taken_back_makes_room_for_the_next_attempt_on_its_run(
    book: Book, kit: ledgers.LedgerKit
) -> None:
    first = open_claim(book)
    hold(book, first)
    book.request_cancel(first.flow_run_id)
    assert book.expire(read(book, first), untouched_seconds=0)
    second = open_claim(book, first.flow_run_id)
    kept = read(book, second)
    # Nothing of the first one is left but what counts attempts and fences.
    assert (kept.claim_id, kept.stage, kept.attempt) == (second.claim_id, Stage.OPENED, 2)
    assert (kept.owner, kept.resends, kept.outcome) == ("", 0, "")
    assert not kept.cancel_requested
    kit.pass_time(2 * redis_ledger.RETENTION_SECONDS)
    assert stage(book, second) is Stage.OPENED


# Which claims count as attempts


def test_claims_that_prefect_refused_are_no_attempts(book: Book) -> None:
    # A run that waits for its deployment's concurrency limit is refused again and again.
    run_id = uuid4()
    for _ in range(5):
        assert close(book, open_claim(book, run_id))
        assert book.expire(read(book, open_claim(book, run_id)), untouched_seconds=0)
    assert read(book, open_claim(book, run_id)).attempt == 1


def test_claims_that_prefect_granted_are_attempts_until_the_run_ends(book: Book) -> None:
    run_id = uuid4()
    for number in range(1, 4):
        claim = open_claim(book, run_id)
        assert book.accept(claim)
        assert read(book, claim).attempt == number
        assert book.expire(read(book, claim), untouched_seconds=0)
    claim = open_claim(book, run_id)
    book.accept(claim)
    assert close(book, claim)
    last = hold(book, open_claim(book, run_id))
    assert last.attempt == 5


@pytest.mark.parametrize("told_later", [True, False])
def test_a_run_that_ended_is_counted_from_the_beginning(book: Book, told_later: bool) -> None:
    # It may be started again for other reasons: a pause, a retry of the flow's own, a user.
    run_id = uuid4()
    book.expire(read(book, hold_anew(book, run_id)), untouched_seconds=0)
    claim = hold_anew(book, run_id)
    lease = hold(book, claim)
    assert lease.attempt == 2
    if told_later:
        assert book.finish(lease, "outcome")
    assert close(book, claim, lease.fence)
    assert read(book, open_claim(book, run_id)).attempt == 1


def test_a_run_that_its_holder_gives_up_is_counted_on(book: Book) -> None:
    run_id = uuid4()
    for number in range(1, 4):
        lease = hold(book, open_claim(book, run_id))
        assert lease.attempt == number
        given_up = claims.NewClaim(run_id, lease.claim_id)
        assert book.close(given_up, fence=lease.fence, failed=True)


def hold_anew(book: Book, run_id: UUID) -> claims.NewClaim:
    claim = open_claim(book, run_id)
    hold(book, claim)
    return claim


# Listing


def test_open_claims_are_listed_oldest_first_whatever_their_pool(
    book: Book, kit: ledgers.LedgerKit
) -> None:
    made = [new_claim() for _ in range(3)]
    for claim, pool in zip(made, ("a", "b", "a"), strict=True):
        book.open([claim], pool=pool, transition_id=uuid4(), slots=MANY)
        kit.pass_time(1)
    assert [claim.flow_run_id for claim in book.open_claims()] == [
        claim.flow_run_id for claim in made
    ]
    assert close(book, made[1])
    assert [claim.pool for claim in book.open_claims()] == ["a", "a"]
    assert book.open_run_ids() == {made[0].flow_run_id, made[2].flow_run_id}


def test_a_claim_whose_hash_is_gone_is_not_listed(redis: Redis) -> None:
    book = redis_ledger.RedisLedger(redis)
    claim = open_claim(book)
    redis.delete(f"{keys.PREFIX}claim:{claim.flow_run_id}")
    assert book.open_claims() == []


# Accepting


def test_an_accepted_claim_is_pending(book: Book) -> None:
    claim = open_claim(book)
    assert book.accept(claim)
    assert stage(book, claim) is Stage.PENDING


def test_a_late_acceptance_leaves_a_held_claim_held(book: Book) -> None:
    claim = open_claim(book)
    hold(book, claim)
    assert book.accept(claim)
    assert stage(book, claim) is Stage.HELD


def test_what_is_not_open_cannot_be_accepted(book: Book) -> None:
    assert not book.accept(new_claim())
    claim = open_claim(book)
    assert not book.accept(new_claim(claim.flow_run_id))
    close(book, claim)
    assert not book.accept(claim)
    assert stage(book, claim) is Stage.CLOSED
