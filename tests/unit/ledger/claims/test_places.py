"""The slots of a worker that claims take, from being opened to their end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis import Redis

from dispatcher.ledger import claims, keys, redis_ledger
from tests.unit.ledger.claims.claim_steps import POOL, close, hold, new_claim, read, stage

Book = claims.Ledger
Stage = claims.Stage

NODES = ["", "a", "b"]


def take(book: Book, node: str = "a", *, weight: int = 1, slots: int = 3) -> claims.NewClaim | None:
    claim = new_claim()
    opened = book.open(
        [claim], pool=POOL, transition_id=uuid4(), slots=slots, node=node, weight=weight
    )
    return claim if opened else None


def taken(book: Book, node: str = "a", *, weight: int = 1) -> claims.NewClaim:
    claim = take(book, node, weight=weight)
    assert claim is not None
    return claim


def test_claims_take_the_slots_of_their_worker_alone(book: Book) -> None:
    assert [take(book, "a", slots=2) is not None for _ in range(3)] == [True, True, False]
    assert take(book, "b", slots=1) is not None
    assert take(book, slots=3, node="") is not None
    assert book.used_slots(NODES) == {"": 1, "a": 2, "b": 1}


def test_a_claim_takes_as_many_slots_as_it_weighs(book: Book) -> None:
    claim = taken(book, weight=2)
    assert (read(book, claim).meant_for, read(book, claim).weight) == ("a", 2)
    assert take(book, weight=2) is None
    assert take(book, weight=1) is not None
    assert take(book, weight=1) is None
    assert book.used_slots(["a"]) == {"a": 3}


def test_a_repeated_opening_takes_no_more_slots(book: Book) -> None:
    claim = taken(book, weight=2)
    again = book.open([claim], pool=POOL, transition_id=uuid4(), slots=3, node="a", weight=2)
    assert again == [claim]
    assert book.used_slots(["a"]) == {"a": 2}


def test_who_acquires_a_claim_uses_slots_of_his_own_worker(book: Book) -> None:
    claim = taken(book, weight=2)
    lease = hold(book, claim, "b#1")
    assert lease.weight == 2
    assert book.used_slots(NODES) == {"": 0, "a": 0, "b": 2}
    assert read(book, claim).meant_for == "b"
    hold(book, claim, "b#1")
    assert book.used_slots(["b"]) == {"b": 2}


def test_a_message_that_is_sent_again_takes_slots_where_it_goes(book: Book) -> None:
    claim = taken(book, weight=2)
    assert not book.resend(claim, node="b")  # not accepted yet
    assert book.used_slots(NODES) == {"": 0, "a": 2, "b": 0}
    assert book.accept(claim)
    assert book.resend(claim, node="b")
    assert book.used_slots(NODES) == {"": 0, "a": 0, "b": 2}


def finish(book: Book, claim: claims.NewClaim) -> object:
    return book.finish(hold(book, claim, "a#1"), "outcome")


def close_held(book: Book, claim: claims.NewClaim) -> object:
    return book.close(claim, fence=hold(book, claim, "a#1").fence)


def close_finished(book: Book, claim: claims.NewClaim) -> object:
    lease = hold(book, claim, "a#1")
    book.finish(lease, "outcome")
    return book.close(claim, fence=lease.fence)


def expire(book: Book, claim: claims.NewClaim) -> object:
    return book.expire(read(book, claim), untouched_seconds=0)


def cancel(book: Book, claim: claims.NewClaim) -> object:
    return book.request_cancel(claim.flow_run_id)[0] is claims.CancelResult.CLOSED


@pytest.mark.parametrize(
    "end",
    [close, finish, close_held, close_finished, expire, cancel],
)
def test_every_end_of_a_claim_frees_its_slots(
    book: Book, end: Callable[[Book, claims.NewClaim], object]
) -> None:
    claim, other = taken(book, weight=2), taken(book)
    assert end(book, claim)
    assert book.used_slots(["a"]) == {"a": 1}
    assert stage(book, other) is Stage.OPENED


def test_a_lease_that_is_restored_takes_its_slots_again(book: Book, kit: Any) -> None:
    lease = hold(book, taken(book, weight=2), "b#1")
    kit.flush()
    assert book.used_slots(NODES) == {"": 0, "a": 0, "b": 0}
    assert book.restore(lease)
    assert book.restore(lease)
    assert book.used_slots(NODES) == {"": 0, "a": 0, "b": 2}
    assert read(book, claims.NewClaim(lease.flow_run_id, lease.claim_id)).weight == 2


def test_a_worker_that_does_not_serve_the_pool_is_refused_and_the_claim_waits_on(
    book: Book,
) -> None:
    claim = taken(book)
    assert book.accept(claim)
    refused = book.acquire(claim, owner="b#1", pools=["other", "another"])
    assert refused is claims.Refusal.FOREIGN
    assert (stage(book, claim), read(book, claim).meant_for) == (Stage.PENDING, "a")
    assert isinstance(book.acquire(claim, owner="b#1", pools=["other", POOL]), claims.Lease)


def forget_place(redis: Redis, flow_run_id: UUID) -> None:
    """Make a claim one that an earlier version has opened."""
    redis.hdel(f"{keys.PREFIX}claim:{flow_run_id}", "node", "weight")
    redis.delete(f"{keys.PREFIX}open:a")


def test_a_claim_of_an_earlier_version_weighs_one_and_gets_a_place_with_its_worker(
    redis: Redis,
) -> None:
    book = redis_ledger.RedisLedger(redis)
    claim = taken(book)
    forget_place(redis, claim.flow_run_id)
    assert (read(book, claim).meant_for, read(book, claim).weight) == (claims.ANYBODY, 1)
    lease = hold(book, claim, "b#1")
    assert lease.weight == 1
    assert book.used_slots(NODES) == {"": 0, "a": 0, "b": 1}
    assert book.close(claim, fence=lease.fence)
    assert book.used_slots(["b"]) == {"b": 0}


def test_slots_of_a_claim_that_an_earlier_version_has_closed_are_free(redis: Redis) -> None:
    book = redis_ledger.RedisLedger(redis)
    claim, other = taken(book, weight=2), taken(book)
    redis.zrem(f"{keys.PREFIX}open", str(claim.flow_run_id))
    assert book.used_slots(["a"]) == {"a": 1}
    assert take(book, weight=2) is not None
    assert book.open_run_ids() >= {other.flow_run_id}
