"""The poll task: claims due flow runs of a work pool and hands each to the fleet."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

from dispatcher import catalog, claims, errors, fleet, locks, nudges, planning, polls
from dispatcher.api import client, schemas

# A second poll meanwhile does no harm, so the lock need not outlive a poll that was killed.
LOCK_SECONDS = 15.0
# A poll that is nudged while it works starts over, but leaves the worker's place after this many.
MAX_ROUNDS = 20

logger = logging.getLogger(__name__)

Publish = Callable[[schemas.FlowRun, claims.NewClaim, str], None]


class Poller:
    """Claims as many due runs of a pool as the fleet has free slots.

    ``publish`` sends a claimed run to the workers. The order of the steps is what keeps a run
    from being lost or doubled: ledger, then Prefect, then message.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        known: catalog.Catalog,
        workers: fleet.Fleet,
        mutex: locks.Locks,
        calls: nudges.Nudges,
        record: polls.Polls,
        publish: Publish,
        executor_types: Collection[str],
        worker_name: str,
        work_queues: Sequence[str] = (),
        prefetch_seconds: float = 10.0,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._ledger = book
        self._catalog = known
        self._fleet = workers
        self._locks = mutex
        self._nudges = calls
        self._polls = record
        self._publish = publish
        self._worker_name = worker_name
        self._executor_types = frozenset(executor_types)
        self._work_queues = tuple(work_queues)
        self._prefetch = timedelta(seconds=prefetch_seconds)
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
        for _ in range(MAX_ROUNDS):
            with self._locks.hold(f"poll:{pool}", lease_seconds=LOCK_SECONDS) as held:
                if not held:
                    return claimed
                self._nudges.take(pool)
                granted = self._round(pool)
                self._polls.record(pool)
            claimed += granted
            # Looked at after the lock is free: the poll that a nudge sent found it taken and went.
            # Not taken yet: if another poll is quicker to the lock, the nudge is that one's.
            if granted < client.PAGE_LIMIT and not self._nudges.is_waiting(pool):
                return claimed
        self._nudges.take(pool)
        self._nudges.nudge(pool)
        return claimed

    def _round(self, pool: str) -> int:
        slots = self._fleet.slots()
        claimed = self._ledger.open_run_ids()
        free = planning.free_slots(slots=slots, open_claims=len(claimed))
        if not free or not self._is_served(pool):
            return 0
        rows = self._due(pool, limit=min(free, client.PAGE_LIMIT))
        runs = planning.plan_claims(rows, claimed=claimed, free_slots=free)
        return sum(self._claim(pool, run, slots=slots) for run in runs)

    def _is_served(self, pool: str) -> bool:
        try:
            return self._catalog.pool(pool).type in self._executor_types
        except errors.ObjectNotFound:
            # The sync task creates it, or says that it may not.
            return False

    def _due(self, pool: str, *, limit: int) -> list[schemas.ScheduledFlowRun]:
        return self._api.get_scheduled_flow_runs(
            pool,
            work_queue_names=self._work_queues,
            scheduled_before=self._now() + self._prefetch,
            limit=limit,
        )

    def _claim(self, pool: str, run: schemas.FlowRun, *, slots: int) -> bool:
        """Claim and publish one run; false if it has gone to somebody else, or no slot is free.

        Each run has a request of its own: Prefect 3.8 writes what it notes on the state of one run
        of a request (its scheduled time, its concurrency lease) on the next ones too, which would
        start early or end with the other's lease.
        """
        claim = claims.NewClaim(run.id, uuid4())
        transition_id = claims.new_transition_id(self._worker_name)
        if not self._ledger.open([claim], pool=pool, transition_id=transition_id, slots=slots):
            return False
        if not self._is_granted(run.id, transition_id):
            self._ledger.close(claim)
            return False
        if self._ledger.accept(claim):
            self._publish(run, claim, pool)
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
