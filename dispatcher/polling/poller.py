"""The poll task: claims due flow runs of a work pool and hands each to the fleet."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from dispatcher import error_boundary, errors, planning
from dispatcher.ledger import claims, last_polls, locks, poll_nudges
from dispatcher.polling import fairness, late_runs, parallel_calls, places
from dispatcher.prefect_api import catalog, client, schemas
from dispatcher.preparation import job_preparation

# A second poll meanwhile does no harm, so the lock need not outlive a poll that was killed.
LOCK_SECONDS = 15.0
# A poll that finds more and more to claim leaves the worker's place to others after so many looks
# at the pool, and after so long it serves no more nudges.
MAX_ROUNDS = 20
STAY_SECONDS = 0.5
# How long after its last claim it waits for a nudge. Runs that are over sooner have one poll for
# many of them, and not a message for each.
LINGER_SECONDS = 0.1
# How long after such a nudge it lets others come: slots that become free together are one look.
GATHER_SECONDS = 0.005
# How many runs are claimed at once, each over a connection of its own. A server on SQLite writes
# one after the other anyway; more would only queue up there, before the requests of engines.
CONNECTIONS = 6

logger = logging.getLogger(__name__)

Publish = Callable[[schemas.FlowRun, claims.NewClaim, str, int, str], None]
CallLater = Callable[[float, Callable[[], None]], None]


def in_a_thread(seconds: float, call: Callable[[], None]) -> None:
    """Call something after a while; it is forgotten with this process."""
    timer = threading.Timer(seconds, call)
    timer.daemon = True
    timer.start()


@dataclass(frozen=True)
class _Round:
    """What one look at a pool came to; ``has_more`` if another one may find more to claim."""

    granted: int = 0
    has_more: bool = False
    refused: frozenset[UUID] = frozenset()


class Poller:
    """Claims as many due runs of a pool as the fleet has free slots.

    ``publish`` sends a claimed run to the workers. The order of the steps is what keeps a run
    from being lost or doubled: ledger, then Prefect, then message. Several runs take them side by
    side, so neither claims nor messages are strictly in the order of the plan.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        known: catalog.Catalog,
        order: fairness.Turns,
        late: late_runs.LateRuns,
        slots: places.Places,
        mutex: locks.Locks,
        calls: poll_nudges.PollNudges,
        record: last_polls.LastPolls,
        publish: Publish,
        find_executor: job_preparation.FindExecutor,
        worker_name: str,
        prefetch_seconds: float = 10.0,
        connections: int = CONNECTIONS,
        stay_seconds: float = STAY_SECONDS,
        linger_seconds: float = LINGER_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
        call_later: CallLater | None = None,
    ) -> None:
        self._call_later = call_later or in_a_thread
        self._api = api
        self._ledger = book
        self._catalog = known
        self._turns = order
        self._late = late
        self._places = slots
        self._locks = mutex
        self._nudges = calls
        self._polls = record
        self._publish = publish
        self._worker_name = worker_name
        self._find_executor = find_executor
        self._prefetch = timedelta(seconds=prefetch_seconds)
        self._connections = connections
        self._stay_seconds = stay_seconds
        self._linger_seconds = linger_seconds
        self._monotonic = monotonic
        self._sleep = sleep
        self._now = now
        self._bulk = True

    def poll(self, pool: str) -> int:
        """Claim and publish due runs until no slot is free; return how many.

        A nudge that arrives meanwhile is served before returning. Does nothing if another poll
        of the pool is at work.

        Raises:
            errors.ApiError: the API could not be asked; what was claimed is published.
        """
        claimed = 0
        leave_at = self._monotonic() + self._stay_seconds
        while True:
            with self._locks.hold(poll_nudges.lock_name(pool), lease_seconds=LOCK_SECONDS) as held:
                if not held:
                    return claimed
                self._nudges.take(pool)
                granted, is_done = self._attend(pool, leave_at)
                self._polls.record(pool)
            claimed += granted
            # Looked at after the lock is free: who nudges a poll at work sends no other one.
            # Not taken yet: if another poll is quicker to the lock, the nudge is that one's.
            if is_done and not self._nudges.is_waiting(pool):
                return claimed
            if not is_done or self._monotonic() >= leave_at:
                break
        self._nudges.take(pool)
        self._nudges.nudge(pool)
        return claimed

    def _attend(self, pool: str, leave_at: float) -> tuple[int, bool]:
        """Claim while there is something to claim; how many, and whether that was all.

        Runs that end meanwhile are waited for, as long as that keeps leading to claims.
        """
        claimed, linger_until = 0, 0.0
        refused: frozenset[UUID] = frozenset()
        for _ in range(MAX_ROUNDS):
            done = self._round(pool, refused)
            claimed += done.granted
            now = self._monotonic()
            if done.granted:
                linger_until = now + self._linger_seconds
            patience = 0.0 if done.has_more else min(linger_until, leave_at) - now
            if now < leave_at and self._nudges.wait(pool, patience):
                refused = frozenset()  # what has ended may have made room for them
                self._sleep(GATHER_SECONDS)
                self._nudges.take(pool)
            elif done.has_more:
                refused |= done.refused
            else:
                return claimed, True
        return claimed, False

    def _round(self, pool: str, refused: frozenset[UUID]) -> _Round:
        rooms = self._places.rooms(pool)
        free = planning.free_places(rooms)
        if not free or not self._is_served(pool):
            self._nudges.want(pool)
            return _Round()
        limit = min(free, client.PAGE_LIMIT)
        rows, plan = self._plan(pool, rooms, refused, limit)
        if plan.left and len(rows) >= limit:
            # Behind those for which there is no place there may be some for which there is one.
            limit = client.PAGE_LIMIT
            rows, plan = self._plan(pool, rooms, refused, limit)
        done = self._claim_all(pool, plan.placed, is_full=len(rows) >= limit)
        if plan.left or len(rows) >= limit:
            self._nudges.want(pool)
        else:
            self._nudges.want_no_more(pool)
        return done

    def _plan(
        self,
        pool: str,
        rooms: Sequence[planning.Room],
        refused: frozenset[UUID],
        limit: int,
    ) -> tuple[Sequence[schemas.ScheduledFlowRun], places.Placement]:
        now = self._now()
        claimed = self._ledger.open_run_ids()
        due_before = now + self._prefetch
        queues = self._places.queues_to_ask(pool, rooms)
        rows = self._due(pool, queues, due_before=due_before, limit=limit)
        if self._late.skip(rows, now):
            rows = self._due(pool, queues, due_before=due_before, limit=limit)
        self._come_back(pool, rows, now)
        look = self._turns.look(pool, rows, limit=limit, due_before=due_before, refused=refused)

        def choose(free: int, left: frozenset[UUID]) -> Sequence[schemas.FlowRun]:
            return planning.plan_claims(
                rows,
                look.others,
                claimed=claimed | left,
                free_slots=free,
                served=look.served,
                refused=refused,
                now=now,
            )

        plan = self._places.place(pool, choose, rooms, now)
        if look.contested:
            self._turns.note(pool, [each.run for each in plan.placed])
        return rows, plan

    def _come_back(
        self, pool: str, rows: Sequence[schemas.ScheduledFlowRun], now: datetime
    ) -> None:
        """Have another poll when the first run that is put off is due."""
        put_off = [row.flow_run for row in rows if planning.is_put_off(row.flow_run, now)]
        due = min((run.next_scheduled_start_time or now for run in put_off), default=None)
        if due is not None:
            self._call_later((due - now).total_seconds(), lambda: self._nudge_quietly(pool))

    def _nudge_quietly(self, pool: str) -> None:
        with contextlib.suppress(*error_boundary.EXPECTED):  # the next tick polls as well
            self._nudges.nudge(pool)

    def _claim_all(self, pool: str, plan: Sequence[places.Placed], *, is_full: bool) -> _Round:
        """Claim runs side by side; one that fails leaves the others alone.

        ``is_full`` says that the server may have more to show, for which there is room where
        something was refused.
        """
        granted = parallel_calls.for_each(
            plan,
            lambda placed: self._claim(pool, placed),
            threads=self._connections,
            only_its_own=errors.ApiResponseError,
        )
        refused = {
            planning.turn_of(placed.run) for placed, ok in zip(plan, granted, strict=True) if not ok
        }
        return _Round(
            granted=sum(granted),
            has_more=is_full and bool(refused or sum(granted) >= client.PAGE_LIMIT),
            refused=frozenset(refused),
        )

    def _is_served(self, pool: str) -> bool:
        try:
            return self._find_executor(self._catalog.pool(pool).type) is not None
        except errors.ObjectNotFound:
            # The sync task creates it, or says that it may not.
            return False

    def _due(
        self, pool: str, work_queues: Sequence[str], *, due_before: datetime, limit: int
    ) -> list[schemas.ScheduledFlowRun]:
        return self._api.get_scheduled_flow_runs(
            pool,
            work_queue_names=work_queues,
            scheduled_before=due_before,
            limit=limit,
        )

    def _claim(self, pool: str, placed: places.Placed) -> bool:
        """Claim and publish one run; false if it has gone to somebody else, or no slot is free.

        Each run has a request of its own: Prefect 3.8 writes what it notes on the state of one run
        of a request (its scheduled time, its concurrency lease) on the next ones too, which would
        start early or end with the other's lease.
        """
        run, room = placed.run, placed.room
        claim = claims.NewClaim(run.id, uuid4())
        transition_id = claims.new_transition_id(self._worker_name)
        if not self._ledger.open(
            [claim],
            pool=pool,
            transition_id=transition_id,
            slots=room.slots,
            node=room.node,
            weight=placed.weight,
        ):
            return False
        if not self._is_granted(run.id, transition_id):
            self._ledger.close(claim)
            return False
        if attempt := self._ledger.accept(claim):
            self._publish(run, claim, pool, attempt, room.node)
        return True

    def _is_granted(self, run_id: UUID, transition_id: UUID) -> bool:
        """Propose Pending; whether Prefect granted it, be it to an earlier try of this request."""
        result = self._propose(run_id, transition_id)
        if result is None:
            # Not Scheduled any more, which may be our own work if the first answer was lost.
            return self._is_pending_by(run_id, transition_id)
        granted = planning.is_granted(result, transition_id=transition_id)
        if not granted:
            extra = {"flow_run_id": run_id}
            logger.info("flow run %s was not claimed: %s", run_id, result.reason, extra=extra)
        return granted

    def _propose(self, run_id: UUID, transition_id: UUID) -> schemas.OrchestrationResult | None:
        """Propose Pending for a run that is Scheduled; ``None`` if it is not."""
        proposal = schemas.StateProposal(
            type=schemas.StateType.PENDING, name="Pending", transition_id=transition_id
        )
        if self._bulk:
            try:
                results = self._api.bulk_set_flow_run_state(
                    [run_id], proposal, only_state_types=[schemas.StateType.SCHEDULED]
                )
            except errors.BulkNotSupported:
                self._bulk = False
            else:
                return results[0] if results else None
        # Servers before 3.6.16 have no conditional proposal, and accept Pending on a finished run.
        try:
            run = self._api.read_flow_run(run_id)
            if run.state is None or run.state.type is not schemas.StateType.SCHEDULED:
                return None
            return self._api.set_flow_run_state(run_id, proposal)
        except errors.ObjectNotFound:
            return None

    def _is_pending_by(self, run_id: UUID, transition_id: UUID) -> bool:
        runs = self._api.read_flow_runs(schemas.FlowRunFilter(ids=[run_id]))
        return any(planning.owns_pending(run.state, transition_id=transition_id) for run in runs)
