"""The ledger in Redis and the one in memory give the same answers in any order of operations."""

from __future__ import annotations

from dataclasses import replace
from uuid import UUID, uuid4

from hypothesis import settings, stateful
from hypothesis import strategies as st
from redis import Redis

from dispatcher.ledger import claims, redis_ledger
from tests.unit import ledgers

RUNS = [UUID(int=number) for number in range(1, 4)]
SLOTS = 2
NODES = [claims.ANYBODY, "a", "b"]
TRANSITION_ID = UUID(int=9)

Lease = claims.Lease


def comparable(value: object) -> object:
    """An answer without what comes from either clock."""
    if isinstance(value, Lease):
        return replace(value, fence=0)
    if isinstance(value, claims.Claim):
        return replace(value, fence=int(value.fence > 0), opened_at=0, touched_at=0)
    return value


class Twins(stateful.RuleBasedStateMachine):
    """Asks both ledgers the same; leases are kept in pairs, since their fences differ."""

    runs = st.sampled_from(RUNS)
    nodes = st.sampled_from(NODES)
    # So long ago that several claims on a run are about, and messages of all of them.
    ages = st.sampled_from([0, 0, 0, 1, 2])

    def __init__(self, redis: Redis) -> None:
        super().__init__()
        redis.flushall()
        self.kits: list[ledgers.LedgerKit] = [ledgers.RedisKit(redis), ledgers.InMemoryKit()]
        self.books = [kit.book for kit in self.kits]
        self.made: dict[UUID, list[claims.NewClaim]] = {run_id: [] for run_id in RUNS}
        self.leases: dict[UUID, list[tuple[Lease, Lease]]] = {run_id: [] for run_id in RUNS}

    def claim(self, run_id: UUID, age: int) -> claims.NewClaim:
        made = self.made[run_id]
        return made[-1 - age] if len(made) > age else claims.NewClaim(run_id, UUID(int=0))

    def lease(self, run_id: UUID, age: int) -> tuple[Lease, Lease] | None:
        pairs = self.leases[run_id]
        return pairs[-1 - age] if len(pairs) > age else None

    @stateful.rule(
        run_ids=st.lists(runs, min_size=1, unique=True),
        again=st.booleans(),
        node=nodes,
        weight=st.integers(1, 2),
    )
    def open(self, run_ids: list[UUID], again: bool, node: str, weight: int) -> None:
        asked = [
            self.claim(run_id, 0) if again else claims.NewClaim(run_id, uuid4())
            for run_id in run_ids
        ]
        redis, memory = (
            book.open(
                asked,
                pool="pool",
                transition_id=TRANSITION_ID,
                slots=SLOTS,
                node=node,
                weight=weight,
            )
            for book in self.books
        )
        assert redis == memory
        for claim in redis:
            if claim not in self.made[claim.flow_run_id]:
                self.made[claim.flow_run_id].append(claim)

    @stateful.rule(run_id=runs, age=ages)
    def accept(self, run_id: UUID, age: int) -> None:
        redis, memory = (book.accept(self.claim(run_id, age)) for book in self.books)
        assert redis is memory

    @stateful.rule(run_id=runs, age=ages, node=nodes)
    def resend(self, run_id: UUID, age: int, node: str) -> None:
        redis, memory = (book.resend(self.claim(run_id, age), node=node) for book in self.books)
        assert redis is memory

    @stateful.rule(
        run_id=runs,
        age=ages,
        owner=st.sampled_from(["a#1", "b#1"]),
        pools=st.sampled_from([(), ("pool",), ("pool", "other"), ("other",)]),
    )
    def acquire(self, run_id: UUID, age: int, owner: str, pools: tuple[str, ...]) -> None:
        claim = self.claim(run_id, age)
        redis, memory = (book.acquire(claim, owner=owner, pools=pools) for book in self.books)
        assert comparable(redis) == comparable(memory)
        if isinstance(redis, Lease) and isinstance(memory, Lease):
            known = [pair[0].fence for pair in self.leases[run_id]]
            assert redis.fence >= max(known, default=0)
            self.leases[run_id].append((redis, memory))

    @stateful.rule(run_id=runs, age=ages)
    def renew(self, run_id: UUID, age: int) -> None:
        if pair := self.lease(run_id, age):
            redis, memory = (
                book.renew(lease) for book, lease in zip(self.books, pair, strict=True)
            )
            assert redis == memory

    @stateful.rule(run_id=runs, age=ages)
    def restore(self, run_id: UUID, age: int) -> None:
        if pair := self.lease(run_id, age):
            redis, memory = (
                book.restore(lease) for book, lease in zip(self.books, pair, strict=True)
            )
            assert redis is memory

    @stateful.rule(run_id=runs, age=ages)
    def finish(self, run_id: UUID, age: int) -> None:
        if pair := self.lease(run_id, age):
            redis, memory = (
                book.finish(lease, "outcome") for book, lease in zip(self.books, pair, strict=True)
            )
            assert redis is memory

    @stateful.rule(run_id=runs)
    def cancel(self, run_id: UUID) -> None:
        redis, memory = (book.request_cancel(run_id) for book in self.books)
        assert redis == memory

    @stateful.rule(run_id=runs, age=ages)
    def close(self, run_id: UUID, age: int) -> None:
        redis, memory = (book.close(self.claim(run_id, age)) for book in self.books)
        assert redis is memory

    @stateful.rule(run_id=runs, age=ages)
    def close_with_fence(self, run_id: UUID, age: int) -> None:
        if pair := self.lease(run_id, age):
            claim = claims.NewClaim(run_id, pair[0].claim_id)
            redis, memory = (
                book.close(claim, fence=lease.fence)
                for book, lease in zip(self.books, pair, strict=True)
            )
            assert redis is memory

    @stateful.rule(run_id=runs, untouched=st.sampled_from([0.0, 55.0]), moved_on=st.booleans())
    def expire(self, run_id: UUID, untouched: float, moved_on: bool) -> None:
        seen = [book.get(run_id) for book in self.books]
        if moved_on:
            self.accept(run_id, 0)
        expired = [
            book.expire(claim, untouched_seconds=untouched)
            for book, claim in zip(self.books, seen, strict=True)
            if claim is not None
        ]
        assert len(set(expired)) <= 1

    @stateful.rule(run_id=runs, age=ages, node=st.sampled_from("ab"))
    def forfeit(self, run_id: UUID, age: int, node: str) -> None:
        redis, memory = (book.forfeit(self.claim(run_id, age), node=node) for book in self.books)
        assert redis == memory

    @stateful.rule(seconds=st.sampled_from([10, 10, 60, redis_ledger.RETENTION_SECONDS + 60]))
    def pass_time(self, seconds: float) -> None:
        for kit in self.kits:
            kit.pass_time(seconds)

    @stateful.rule()
    def flush(self) -> None:
        for kit in self.kits:
            kit.flush()

    @stateful.invariant()
    def both_keep_the_same(self) -> None:
        for run_id in RUNS:
            redis, memory = (comparable(book.get(run_id)) for book in self.books)
            assert redis == memory

    @stateful.invariant()
    def both_count_what_open_claims_weigh(self) -> None:
        redis, memory = (book.used_slots(NODES) for book in self.books)
        assert redis == memory
        using = [
            claim
            for claim in self.books[0].open_claims()
            if claim.stage is not claims.Stage.FINISHED
        ]
        assert redis == {
            node: sum(claim.weight for claim in using if claim.meant_for == node) for node in NODES
        }

    @stateful.invariant()
    def both_list_the_same(self) -> None:
        redis, memory = (book.open_run_ids() for book in self.books)
        assert redis == memory
        listed = [
            {claim.flow_run_id: comparable(claim) for claim in book.open_claims()}
            for book in self.books
        ]
        assert listed[0] == listed[1]
        assert redis == {
            run_id
            for run_id in RUNS
            for claim in [self.books[0].get(run_id)]
            if claim and claim.stage not in {claims.Stage.CLOSED, claims.Stage.FINISHED}
        }


def test_no_order_of_operations_tells_the_two_ledgers_apart(redis: Redis) -> None:
    class Machine(Twins):
        def __init__(self) -> None:
            super().__init__(redis)

    stateful.run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=80, stateful_step_count=40, deadline=None),
    )
