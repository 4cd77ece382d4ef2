"""Every answer of every operation of a ledger, repeated and in parallel.

The same cases run on a real Valkey and on the ledger in memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent import futures
from dataclasses import replace
from typing import TypeVar
from uuid import UUID, uuid4

import pytest
from redis import Redis

from dispatcher import claims, ledger
from tests.unit import ledgers

POOL = "pool"
MANY = 1000  # slots

T = TypeVar("T")

Book = claims.Ledger
Cancel = claims.CancelResult
Refusal = claims.Refusal
Renewal = claims.Renewal
Stage = claims.Stage


@pytest.fixture(params=["redis", "memory"])
def kit(request: pytest.FixtureRequest) -> ledgers.LedgerKit:
    """A ledger, empty at first, with what tests do behind its back."""
    if request.param == "memory":
        return ledgers.InMemoryKit()
    return ledgers.RedisKit(request.getfixturevalue("redis"))


@pytest.fixture
def book(kit: ledgers.LedgerKit) -> Book:
    return kit.book


def new_claim(flow_run_id: UUID | None = None) -> claims.NewClaim:
    return claims.NewClaim(flow_run_id or uuid4(), uuid4())


def open_claim(book: Book, flow_run_id: UUID | None = None) -> claims.NewClaim:
    claim = new_claim(flow_run_id)
    assert book.open([claim], pool=POOL, transition_id=uuid4(), slots=MANY) == [claim]
    return claim


def acquire(book: Book, claim: claims.NewClaim, owner: str = "a") -> claims.Lease | claims.Refusal:
    return book.acquire(claim, owner=owner)


def hold(book: Book, claim: claims.NewClaim, owner: str = "a") -> claims.Lease:
    lease = acquire(book, claim, owner)
    assert isinstance(lease, claims.Lease)
    return lease


def accept(book: Book, claim: claims.NewClaim) -> bool:
    return book.accept(claim)


def close(book: Book, claim: claims.NewClaim, fence: int | None = None) -> bool:
    return book.close(claim, fence=fence)


def read(book: Book, claim: claims.NewClaim) -> claims.Claim:
    kept = book.get(claim.flow_run_id)
    assert kept is not None
    return kept


def stage(book: Book, claim: claims.NewClaim) -> claims.Stage:
    return read(book, claim).stage


def together(calls: Iterable[Callable[[], T]]) -> list[T]:
    """Make the calls at one moment, each in a thread of its own."""
    calls = list(calls)
    barrier = threading.Barrier(len(calls))

    def call(function: Callable[[], T]) -> T:
        barrier.wait(10)
        return function()

    with futures.ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


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
    book = ledger.RedisLedger(no_redis)
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
    kit.pass_time(2 * ledger.RETENTION_SECONDS)
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
    book = ledger.RedisLedger(redis)
    claim = open_claim(book)
    redis.delete(f"{ledger.PREFIX}claim:{claim.flow_run_id}")
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
    kit.pass_time(ledger.RETENTION_SECONDS - 60)
    assert acquire(book, claim) is Refusal.CLOSED
    kit.pass_time(61)
    assert acquire(book, claim) is Refusal.MISSING


def test_what_is_not_closed_is_never_forgotten(book: Book, kit: ledgers.LedgerKit) -> None:
    made = [open_claim(book) for _ in range(4)]
    book.accept(made[1])
    hold(book, made[2])
    assert book.finish(hold(book, made[3]), "outcome")
    kit.pass_time(10 * ledger.RETENTION_SECONDS)
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


Step = Callable[[Book, claims.NewClaim], object]


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


# Owners


def test_a_claim_knows_the_worker_that_holds_it(book: Book) -> None:
    claim = open_claim(book)
    assert read(book, claim).node == ""
    hold(book, claim, owner="runs#1@host#0b1c")
    assert read(book, claim).node == "runs#1@host"
    assert read(book, claim).new == claim


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
