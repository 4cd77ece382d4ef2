"""Whatever dies, stalls, is delivered twice or gets lost, at whatever step: the promises hold."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import pytest
from hypothesis import settings, stateful
from hypothesis import strategies as st
from redis import Redis

from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas
from tests.unit import ledger_world, ledgers, values

S = schemas.StateType

RUNS = [UUID(int=number) for number in range(1, 4)]
ACCIDENTS = [
    "an answer is lost",
    "a process dies",
    "a message is lost",
    "a worker dies",
    "a worker is cut off",
    "a worker finds Redis again",
]
EXAMPLES = {"redis": 40, "memory": 200}


class Accidents(stateful.RuleBasedStateMachine):
    """Processes around a ledger, of which any may do its next step, stall or die at any time.

    Few rules with much in each, so that in most examples much happens.
    """

    # Which of those that there are; counted round.
    which = st.integers(0, 20)
    # How far a process gets before it stalls.
    steps = st.sampled_from([30, 0, 1, 2, 3, 4, 6])

    def __init__(self, kit: ledgers.LedgerKit) -> None:
        super().__init__()
        kit.flush()
        self.world = ledger_world.World(kit, RUNS)
        self.went_back = 0.0

    def start(self, process: ledger_world.Steps, steps: int) -> None:
        self.world.processes.append(process)
        self.advance(process, steps)

    def advance(self, process: ledger_world.Steps, steps: int) -> None:
        for _ in range(steps):
            if next(process, process) is process:
                self.world.processes.remove(process)
                return

    @stateful.rule(steps=steps)
    def poll(self, steps: int) -> None:
        self.start(self.world.poll(), steps)

    @stateful.precondition(lambda self: self.world.messages)
    @stateful.rule(which=which, times=st.integers(1, 3), steps=steps)
    def deliver(self, which: int, times: int, steps: int) -> None:
        """Deliver any message, in any order, and perhaps again."""
        messages = self.world.messages
        claim = messages[which % len(messages)]
        if times < 3:
            messages.remove(claim)
        for _ in range(min(times, 2)):
            holder = ledger_world.Holder(owner=f"w#{self.world.new_id()}")
            self.world.holders.append(holder)
            self.start(self.world.execute(claim, holder), steps)

    @stateful.precondition(lambda self: self.world.processes)
    @stateful.rule(which=which, steps=steps)
    def go_on(self, which: int, steps: int) -> None:
        processes = self.world.processes
        self.advance(processes[which % len(processes)], steps)

    @stateful.rule(seconds=st.sampled_from([25.0, 11.0, 9.0, 1.0]), steps=steps)
    def recover(self, seconds: float, steps: int) -> None:
        """Time passes, and recovery looks after it."""
        self.world.pass_time(seconds)
        self.start(self.world.recover(), steps)

    @stateful.rule(run_id=st.sampled_from(RUNS), steps=steps)
    def cancel_or_retry(self, run_id: UUID, steps: int) -> None:
        """A user has a run cancelled, or one that is over started again."""
        if not self.world.states[run_id].is_terminal:
            self.start(self.world.cancel(run_id), steps)
        elif not any(self.working(run_id)):
            self.world.states[run_id] = values.SCHEDULED

    @stateful.precondition(lambda self: self.world.processes)
    @stateful.rule(kind=st.sampled_from(ACCIDENTS), which=which)
    def accident(self, kind: str, which: int) -> None:
        world = self.world
        if kind == "an answer is lost":
            world.loses_an_answer = True
        elif kind == "a process dies":
            world.processes.pop(which % len(world.processes))
        elif kind == "a message is lost" and world.messages:
            world.messages.pop(which % len(world.messages))
        elif kind == "a worker dies" and world.holders:
            world.kill(world.holders[which % len(world.holders)])
        elif kind == "a worker is cut off" and world.holders:
            world.holders[which % len(world.holders)].cut_off = True
        elif kind == "a worker finds Redis again" and world.holders:
            world.holders[which % len(world.holders)].cut_off = False

    def working(self, run_id: UUID) -> Iterator[ledger_world.Holder]:
        for holder in self.world.holders:
            if holder.works and holder.lease is not None and holder.lease.flow_run_id == run_id:
                yield holder

    @stateful.invariant()
    def no_two_leases_on_a_run_are_valid(self) -> None:
        leases = [holder.lease for holder in self.world.holders if holder.lease is not None]
        valid = [lease for lease in leases if ledger_world.is_valid(self.world.book, lease)]
        assert all(count == 1 for count in Counter(each.flow_run_id for each in valid).values())

    @stateful.invariant()
    def no_run_is_executed_twice_at_the_same_time(self) -> None:
        assert all(len(list(self.working(run_id))) <= 1 for run_id in RUNS)

    @stateful.invariant()
    def no_more_claims_are_open_than_there_are_slots(self) -> None:
        assert len(self.world.book.open_run_ids()) <= ledger_world.SLOTS

    def teardown(self) -> None:
        """Nothing stays claimed, Pending or Running once everybody is gone but recovery."""
        self.world.die()
        self.world.kit.pass_time(self.went_back)
        self.every_claim_can_be_taken_back()
        self.world.recover_alone()
        assert self.world.book.open_claims() == []
        states = {state.type for state in self.world.states.values()}
        assert states <= {S.SCHEDULED, *schemas.TERMINAL_STATES}

    def every_claim_can_be_taken_back(self) -> None:
        book = self.world.book
        abandoned = [claim for claim in book.open_claims() if claim.claim_id.int % 2]
        for claim in abandoned:
            untouched = ledger_world.LIMITS.untouched(claim.stage)
            self.world.pass_time(untouched + 1)
            assert book.expire(claim, untouched_seconds=untouched)
            kept = book.get(claim.flow_run_id)
            assert kept is not None
            assert kept.stage is claims.Stage.CLOSED
            assert claim.flow_run_id not in book.open_run_ids()


class ClockJumps(Accidents):
    """The same, and the ledger's clock is set forward and back.

    A holder cannot know that; so two jobs may go on until one of them renews its lease.
    """

    @stateful.rule(seconds=st.sampled_from([-3600.0, -20.0, 20.0, 3600.0, 7200.0]))
    def jump(self, seconds: float) -> None:
        self.went_back += max(-seconds, 0)
        self.world.kit.pass_time(seconds)

    @stateful.invariant()
    def no_run_is_executed_twice_at_the_same_time(self) -> None:
        """Checked once every holder that can has renewed its lease."""
        for holder in self.world.holders:
            if holder.lease is not None and not holder.told_to_stop and not holder.cut_off:
                self.world.look(holder)
        for run_id in RUNS:
            assert len([each for each in self.working(run_id) if not each.cut_off]) <= 1


@pytest.mark.parametrize("world", [Accidents, ClockJumps])
@pytest.mark.parametrize("kind", EXAMPLES)
def test_no_accident_breaks_a_promise(
    request: pytest.FixtureRequest, kind: str, world: type[Accidents]
) -> None:
    redis: Redis | None = request.getfixturevalue("redis") if kind == "redis" else None

    class Machine(world):  # type: ignore[misc, valid-type]
        def __init__(self) -> None:
            kit: Any = ledgers.InMemoryKit() if redis is None else ledgers.RedisKit(redis)
            super().__init__(kit)

    stateful.run_state_machine_as_test(
        Machine,
        settings=settings(max_examples=EXAMPLES[kind], stateful_step_count=60, deadline=None),
    )
