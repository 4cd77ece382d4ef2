"""The cancel task: finds the runs that are to be cancelled and sees that they are."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable, Iterator, Mapping
from uuid import UUID

from dispatcher import errors, planning
from dispatcher.ledger import claims, locks, rounds
from dispatcher.prefect_api import client, schemas
from dispatcher.reporting import state_reporter
from executors import errors as executor_errors

# A second tick meanwhile does no harm, so the lock need not outlive one that was killed.
LOCK_SECONDS = 15.0
# What is left of a job has nobody any more who could end it politely.
ORPHAN_GRACE_SECONDS = 5.0
# Between two looks for runs that are in no pool, for each page that is read.
ADRIFT_SECONDS = 5.0
ROUND = "cancel"
ADRIFT_ROUND = "cancel:adrift"

logger = logging.getLogger(__name__)

# Prefect 2 clients ask with a Cancelled state that is named Cancelling.
CANCELLING = schemas.FlowRunFilter(
    state_types=[schemas.StateType.CANCELLING], state_names=["Cancelling"], states_any=True
)
Action = planning.CancelAction

Revoke = Callable[[UUID], None]
Kill = Callable[[schemas.FlowRun, str], None]


class Canceller:
    """Cancels the runs of a fleet's pools, and what the fleet holds whatever pool it is in now.

    A user may delete, rename or move queues, pools and deployments under a run, so what has a
    claim is looked for by its id. ``revoke`` tells the workers about a claim: a task that waits is
    discarded, a task that runs is woken. It may be lost; the mark in the ledger is not. ``kill``
    stops what a run's infrastructure pid names and raises as ``BaseExecutor.kill_infrastructure``
    does. However many pools have a tick, one of them looks for all in ``round_seconds``.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        mutex: locks.Locks,
        turns: rounds.Rounds,
        reporter: state_reporter.Reporter,
        revoke: Revoke,
        kill: Kill,
        queues: Callable[[], Mapping[str, tuple[str, ...]]],
        round_seconds: float = 0.0,
    ) -> None:
        self._api = api
        self._ledger = book
        self._locks = mutex
        self._rounds = turns
        self._reporter = reporter
        self._revoke = revoke
        self._kill = kill
        self._queues = queues
        self._round_seconds = round_seconds
        self._round = ROUND
        self._adrift_round = ADRIFT_ROUND

    def cancel(self) -> int:
        """Act on every run that is to be cancelled; return how many there are.

        Raises:
            errors.ApiError: the API could not be asked.
        """
        if not self._rounds.begin(self._round, seconds=self._round_seconds):
            return 0
        with self._locks.hold(self._round, lease_seconds=LOCK_SECONDS) as held:
            if not held:
                return 0
            found = (*self._of_pools(), *self._held(), *self._adrift())
            runs = {run.id: run for run in found}
            acted = {run.id: self._act(run) for run in runs.values()}
        orphans = [runs[run_id] for run_id, action in acted.items() if action is Action.KILL]
        # Not under the lock, because a kill may take its whole grace.
        for run in orphans:
            self._kill_alone(run)
        return len(runs)

    def hasten(self) -> None:
        """Let the next tick look at once, and everywhere."""
        self._rounds.hasten(self._round)
        self._rounds.hasten(self._adrift_round)

    def _of_pools(self) -> Iterator[schemas.FlowRun]:
        """Runs of the pools: also those that nobody holds any more."""
        together: dict[tuple[str, ...], list[str]] = {}
        for pool, queues in self._queues().items():
            together.setdefault(queues, []).append(pool)
        for queues, pools in together.items():
            wanted = dataclasses.replace(CANCELLING, work_pool_names=pools, work_queue_names=queues)
            # All pages, since runs that cannot be cancelled from here might fill the first.
            for page in self._api.flow_run_pages(wanted):
                yield from page

    def _held(self) -> Iterator[schemas.FlowRun]:
        """Runs that have a claim, wherever they are now."""
        claimed = sorted(self._ledger.open_run_ids())
        for start in range(0, len(claimed), client.PAGE_LIMIT):
            wanted = dataclasses.replace(CANCELLING, ids=claimed[start : start + client.PAGE_LIMIT])
            yield from self._api.read_flow_runs(wanted)

    def _adrift(self) -> Iterator[schemas.FlowRun]:
        """Runs that the fleet held once, and that are in no pool any more since then."""
        if not self._rounds.begin(self._adrift_round, seconds=ADRIFT_SECONDS):
            return
        pages = list(self._api.flow_run_pages(CANCELLING))
        if len(pages) > 1:
            self._rounds.postpone(self._adrift_round, seconds=ADRIFT_SECONDS * len(pages))
        for page in pages:
            adrift = (run for run in page if run.work_pool_name is None)
            yield from (run for run in adrift if self._ledger.get(run.id) is not None)

    def _act(self, run: schemas.FlowRun) -> Action:
        result, claim_id = self._ledger.request_cancel(run.id)
        action = planning.plan_cancellation(run, result)
        closed = result is claims.CancelResult.CLOSED
        if claim_id and (closed or action is Action.WAKE_HOLDER):
            logger.info("flow run %s is to be cancelled; revoking its task %s", run.id, claim_id)
            self._revoke(claim_id)
        if action is Action.REPORT:
            self._report(run, planning.cancelled_unstarted(claimed=closed))
        return action

    def _kill_alone(self, run: schemas.FlowRun) -> None:
        with self._locks.hold(f"kill:{run.id}", lease_seconds=LOCK_SECONDS) as held:
            if held:
                self._kill_orphan(run, run.work_pool_name or self._pool_once(run.id))

    def _pool_once(self, run_id: UUID) -> str:
        claim = self._ledger.get(run_id)
        return claim.pool if claim is not None else ""

    def _kill_orphan(self, run: schemas.FlowRun, pool: str) -> None:
        try:
            self._kill(run, pool)
        except executor_errors.InfrastructureNotFound as error:
            self._report(run, planning.cancelled_gone(str(error)))
        except executor_errors.InfrastructureNotAvailable as error:
            logger.warning("flow run %s cannot be cancelled from here: %s", run.id, error)
        except NotImplementedError as error:
            logger.error("flow run %s cannot be cancelled: %s", run.id, error)
        except errors.ObjectNotFound as error:
            # Without its deployment there is no configuration to kill with.
            self._report(run, planning.cancelled_gone(error.detail))
        except (errors.ApiError, executor_errors.ExecutorError) as error:
            logger.warning("flow run %s could not be cancelled yet: %s", run.id, error)
        except Exception:
            # Whatever an executor raises, the next tick tries again.
            logger.exception("flow run %s could not be cancelled yet", run.id)
        else:
            self._report(run, planning.CANCELLED)

    def _report(self, run: schemas.FlowRun, report: planning.Report) -> None:
        current = self._reporter.read(run.id)
        if current is not None and current.state is not None and current.state.is_cancelling:
            self._reporter.report(run.id, report)
