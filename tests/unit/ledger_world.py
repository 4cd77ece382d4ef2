"""A dispatcher around a ledger, in steps: between any two of them a process may die or stall.

Each process is a generator that yields between its steps. Prefect is a handful of states, time
passes when the test says so, and any question to the ledger may be asked twice, as after a lost
answer. What is decided is decided by the real planning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar
from uuid import UUID

from dispatcher import planning
from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas
from tests.unit import ledgers, values

S = schemas.StateType
Stage = claims.Stage
T = TypeVar("T")

LIMITS = planning.Limits(lease_seconds=15.0, infra_retries=3)
SLOTS = 2
NODE = "w"
TICK_SECONDS = 2.0  # renewals happen so often

Steps = Iterator[None]


@dataclass
class Holder:
    """A delivery of a claim's message, and what became of it."""

    owner: str
    process: Steps | None = None
    lease: claims.Lease | None = None
    renewed_at: float = 0.0
    cut_off: bool = False  # from Redis
    starts: bool = False  # the job is started, or about to be
    begun: bool = False  # the flow is Running
    told_to_stop: bool = False

    @property
    def works(self) -> bool:
        """Whether a job of it executes the run, or is about to."""
        return self.starts and not self.told_to_stop


class World:
    """Runs, messages and processes around one ledger."""

    def __init__(self, kit: ledgers.LedgerKit, run_ids: list[UUID]) -> None:
        self.kit = kit
        self.book = kit.book
        self.states = dict.fromkeys(run_ids, values.SCHEDULED)
        self.messages: list[claims.NewClaim] = []
        self.processes: list[Steps] = []
        self.holders: list[Holder] = []
        self.owners: dict[UUID, str] = {}
        self.unclaimed_since: dict[UUID, float] = {}
        self.now = 0.0
        self.loses_an_answer = False
        self._ids = itertools.count(100)

    def new_id(self) -> UUID:
        """An id that nothing has yet; the same in each repetition of the same steps."""
        return UUID(int=next(self._ids))

    def ask(self, question: Callable[[], T]) -> T:
        """Ask the ledger; the answer may get lost and the question repeated."""
        if self.loses_an_answer:
            self.loses_an_answer = False
            question()
        return question()

    # Prefect

    def propose_pending(self, run_id: UUID, transition_id: UUID) -> bool:
        if self.states[run_id].type is S.SCHEDULED:
            self.states[run_id] = values.state(S.PENDING, "Pending", transition_id)
        return planning.owns_pending(self.states[run_id], transition_id=transition_id)

    def set_if(self, run_id: UUID, type_: S, state: schemas.State) -> None:
        if self.states[run_id].type is type_:
            self.states[run_id] = state

    def end(self, run_id: UUID, state: schemas.State = values.COMPLETED) -> None:
        if not self.states[run_id].is_terminal:
            self.states[run_id] = state

    # Time

    def pass_time(self, seconds: float) -> None:
        """Time passes for everybody, and every holder that can renews its lease meanwhile."""
        while seconds > 0:
            part = min(seconds, TICK_SECONDS)
            seconds -= part
            self.now += part
            self.kit.pass_time(part)
            for holder in self.holders:
                self._keep(holder)

    def _keep(self, holder: Holder) -> None:
        if holder.lease is None or holder.told_to_stop:
            return
        if holder.cut_off:
            over = self.now - holder.renewed_at >= LIMITS.lease_seconds
            holder.told_to_stop = over and not holder.begun
            return
        self.look(holder)

    def look(self, holder: Holder) -> None:
        """What a keeper does at each renewal."""
        assert holder.lease is not None
        lease = holder.lease
        renewal, cancel = self.ask(lambda: self.book.renew(lease))
        holder.renewed_at = self.now
        if cancel or renewal is not claims.Renewal.HELD:
            holder.told_to_stop = True

    # Processes

    def poll(self) -> Steps:
        claimed = self.ask(self.book.open_run_ids)
        due = [run_id for run_id, state in self.states.items() if state.type is S.SCHEDULED]
        wanted = [claims.NewClaim(run_id, self.new_id()) for run_id in due if run_id not in claimed]
        transition_id = self.new_id()
        yield
        opened = self.ask(
            lambda: self.book.open(
                wanted, pool="pool", transition_id=transition_id, slots=SLOTS, node=NODE
            )
        )
        yield
        granted = [
            claim for claim in opened if self.propose_pending(claim.flow_run_id, transition_id)
        ]
        yield
        for claim in opened:
            if claim not in granted:
                self.ask(lambda: self.book.close(claim))  # noqa: B023
                yield
        for claim in granted:
            if self.ask(lambda: self.book.accept(claim)):  # noqa: B023
                yield
                self.messages.append(claim)
                yield

    def execute(self, claim: claims.NewClaim, holder: Holder) -> Steps:
        holder.process = self._execute(claim, holder)
        return holder.process

    def kill(self, holder: Holder) -> None:
        """A worker dies with its job, and renews no more."""
        self.holders.remove(holder)
        if holder.process in self.processes:
            self.processes.remove(holder.process)

    def _execute(self, claim: claims.NewClaim, holder: Holder) -> Steps:
        asked_at = self.now
        lease = self.ask(lambda: self.book.acquire(claim, owner=holder.owner))
        if isinstance(lease, claims.Refusal):
            return
        first = self.owners.setdefault(claim.claim_id, holder.owner)
        assert first == holder.owner, "a claim was acquired by two deliveries"
        holder.lease, holder.renewed_at = lease, asked_at
        yield
        state = self.states[claim.flow_run_id]
        yield
        decision = planning.decide_start(
            state, transition_id=lease.transition_id, cancel_requested=lease.cancel_requested
        )
        if decision is planning.StartDecision.START and not holder.cut_off:
            self.look(holder)  # without an answer nothing starts
            holder.starts = not holder.told_to_stop
            yield
            yield from self._work(claim, holder)
        if holder.cut_off:
            return  # the claim is left to recovery
        outcome = planning.outcome_to_text(planning.NOT_STARTED)
        if claim.claim_id.int % 2:
            self.ask(lambda: self.book.finish(lease, outcome))
            yield
        self.ask(lambda: self.book.close(claim, fence=lease.fence))

    def _work(self, claim: claims.NewClaim, holder: Holder) -> Steps:
        if holder.works:
            self.set_if(claim.flow_run_id, S.PENDING, values.RUNNING)
            holder.begun = True
            yield
        if holder.works:
            self.end(claim.flow_run_id)
            yield
        holder.starts = False

    def recover(self) -> Steps:
        open_claims = self.ask(self.book.open_claims)
        now = self.book.now()
        yield
        # Claims of one millisecond come in any order.
        open_claims.sort(key=lambda claim: claim.flow_run_id)
        actions = planning.plan_recovery(open_claims, now=now, limits=LIMITS, leases_count=True)
        for action in actions:
            yield from self._act(action)
        yield from self._adopt()

    def _act(self, action: planning.Action) -> Steps:
        claim = action.claim
        state = self.states[claim.flow_run_id]
        ours = planning.owns_pending(state, transition_id=claim.transition_id)
        yield
        if isinstance(action, planning.Deliver):
            self.ask(lambda: self.book.close(claim.new, fence=claim.fence))
        elif isinstance(action, planning.Settle) and ours:
            if self.ask(lambda: self.book.accept(claim.new)):
                yield
                self.messages.append(claim.new)
        elif isinstance(action, planning.Resend) and ours:
            if self.ask(lambda: self.book.resend(claim.new, node=NODE)):
                yield
                self.messages.append(claim.new)
        else:
            untouched = LIMITS.untouched(claim.stage)
            closed = self.ask(lambda: self.book.expire(claim, untouched_seconds=untouched))
            yield
            settled = isinstance(action, planning.Settle)
            if closed and not settled and planning.concerns(claim, state):
                self._decide(claim.flow_run_id, state)

    def _adopt(self) -> Steps:
        unfinished = {
            run_id: state
            for run_id, state in self.states.items()
            if state.type in {S.PENDING, S.RUNNING}
        }
        claimed = {claim.flow_run_id for claim in self.ask(self.book.open_claims)}
        orphans = {run_id: unfinished[run_id] for run_id in unfinished if run_id not in claimed}
        self.unclaimed_since = {
            run_id: self.unclaimed_since.get(run_id, self.now) for run_id in orphans
        }
        yield
        for run_id, state in orphans.items():
            since = self.unclaimed_since.get(run_id, self.now)
            if self.now - since >= LIMITS.lost_lease_seconds:
                self._decide(run_id, state)
                yield

    def _decide(self, run_id: UUID, seen: schemas.State) -> None:
        verdict = planning.decide_lost(
            values.run_in(seen), attempt=1, retries=3, opted_in=False, loss="lost"
        )
        if isinstance(verdict, planning.Reschedule):
            self.set_if(run_id, seen.type, values.SCHEDULED)
        elif verdict is not None:
            self.end(run_id, values.CRASHED)

    def cancel(self, run_id: UUID) -> Steps:
        result, _ = self.ask(lambda: self.book.request_cancel(run_id))
        yield
        if result is claims.CancelResult.CLOSED:
            self.end(run_id, values.CANCELLED)

    # The end

    def die(self) -> None:
        """Every process dies, and every message is lost."""
        self.processes.clear()
        self.messages.clear()
        self.holders.clear()

    def recover_alone(self) -> None:
        """Let nothing but recovery go on for as long as it may need."""
        for _ in range(12):
            self.pass_time(LIMITS.lost_lease_seconds + 1)
            for _ in self.recover():
                self.messages.clear()


def is_valid(book: claims.Ledger, lease: claims.Lease) -> bool:
    """Whether the ledger would renew a lease."""
    kept = book.get(lease.flow_run_id)
    held = (lease.claim_id, Stage.HELD, lease.fence)
    return kept is not None and (kept.claim_id, kept.stage, kept.fence) == held
