"""The cancel task: finds the runs that are to be cancelled and sees that they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from uuid import UUID

from dispatcher import claims, errors, locks, planning, reporting
from dispatcher.api import client, schemas
from executors import errors as executor_errors

# A second tick meanwhile does no harm, so the lock need not outlive one that was killed.
LOCK_SECONDS = 15.0
# What is left of a job has nobody any more who could end it politely.
ORPHAN_GRACE_SECONDS = 5.0

logger = logging.getLogger(__name__)

Revoke = Callable[[UUID], None]
Kill = Callable[[schemas.FlowRun, str], None]


class Canceller:
    """Cancels a pool's runs, whoever holds them.

    ``revoke`` tells the workers about a claim: a task that waits is discarded, a task that runs is
    woken. It may be lost; the mark in the ledger is not. ``kill`` stops what a run's
    infrastructure pid names and raises as ``BaseExecutor.kill_infrastructure`` does.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        mutex: locks.Locks,
        reporter: reporting.Reporter,
        revoke: Revoke,
        kill: Kill,
        work_queues: Sequence[str] = (),
    ) -> None:
        self._api = api
        self._ledger = book
        self._locks = mutex
        self._reporter = reporter
        self._revoke = revoke
        self._kill = kill
        self._work_queues = tuple(work_queues)

    def cancel(self, pool: str) -> int:
        """Act on every run of the pool that is to be cancelled; return how many there are.

        Raises:
            errors.ApiError: the API could not be asked.
        """
        with self._locks.hold(f"cancel:{pool}", lease_seconds=LOCK_SECONDS) as held:
            if not held:
                return 0
            runs = self._cancelling(pool)
            orphans = [run for run in runs if self._act(run) is planning.CancelAction.KILL]
            # Last, because a kill may take its whole grace.
            for run in orphans:
                self._kill_orphan(run, pool)
            return len(runs)

    def _cancelling(self, pool: str) -> list[schemas.FlowRun]:
        # Prefect 2 clients ask with a Cancelled state that is named Cancelling.
        wanted = schemas.FlowRunFilter(
            state_types=[schemas.StateType.CANCELLING],
            state_names=["Cancelling"],
            states_any=True,
            work_pool_names=[pool],
            work_queue_names=self._work_queues,
        )
        runs: list[schemas.FlowRun] = []
        while True:
            # All pages, since runs that cannot be cancelled from here might fill the first.
            page = self._api.read_flow_runs(wanted, offset=len(runs))
            runs += page
            if len(page) < client.PAGE_LIMIT:
                return runs

    def _act(self, run: schemas.FlowRun) -> planning.CancelAction:
        result, claim_id = self._ledger.request_cancel(run.id)
        action = planning.plan_cancellation(run, result)
        closed = result is claims.CancelResult.CLOSED
        if claim_id and (closed or action is planning.CancelAction.WAKE_HOLDER):
            logger.info("flow run %s is to be cancelled; revoking its task %s", run.id, claim_id)
            self._revoke(claim_id)
        if action is planning.CancelAction.REPORT:
            self._report(run, planning.cancelled_unstarted(claimed=closed))
        return action

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
