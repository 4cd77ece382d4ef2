"""The execute task: holds one claim's lease, runs the job, reports how it ended."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Collection
from uuid import uuid4

from dispatcher import error_boundary, errors, planning
from dispatcher.execution import job as jobs
from dispatcher.execution import lease_keeper, stop_requests, time_limits, wake_signals
from dispatcher.ledger import claims
from dispatcher.prefect_api import client, schemas
from dispatcher.preparation import job_preparation
from dispatcher.reporting import run_labels, run_logs, state_reporter, worker_events
from executors import errors as executor_errors

logger = logging.getLogger(__name__)


class Execution:
    """Carries out claims, one call each; what goes wrong with one run harms no other."""

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        prepare: job_preparation.Preparation,
        reporter: state_reporter.Reporter,
        events: worker_events.WorkerEvents,
        put_labels: Callable[[run_labels.RunLabels], None],
        worker_name: str,
        wakes: wake_signals.Wakeups,
        requests: stop_requests.StopRequests,
        limits: time_limits.TimeLimits,
        nudge: Callable[[str], None],
        pools: Collection[str],
        lease_seconds: float,
        grace_seconds: float,
        infra_retries: int,
        reschedule_on_shutdown: bool,
    ) -> None:
        self._api = api
        self._ledger = book
        self._preparation = prepare
        self._reporter = reporter
        self._events = events
        self._put_labels = put_labels
        self._worker_name = worker_name
        self._wakes = wakes
        self._stops = requests
        self._limits = limits
        self._nudge = nudge
        self._pools = tuple(pools)
        self._lease_seconds = lease_seconds
        self._grace_seconds = grace_seconds
        self._infra_retries = infra_retries
        self._reschedule_on_shutdown = reschedule_on_shutdown

    def execute(self, claim: claims.NewClaim, *, worker: str) -> str:
        """Execute the run of a claim, unless the claim is somebody else's; return what happened.

        ``worker`` is the name of this Celery worker. A duplicate delivery is refused by the
        ledger and writes nothing anywhere.

        Raises:
            errors.ApiError: the API could not be asked before a job was started; the claim is
                left to recovery, which puts the run back.
            redis.RedisError: the ledger could not be asked; the claim is left to recovery.
        """
        owner = f"{worker}#{uuid4()}"
        lease = self._ledger.acquire(claim, owner=owner, pools=self._pools)
        if isinstance(lease, claims.Refusal):
            logger.info("flow run %s: delivery refused, its claim is %s", claim.flow_run_id, lease)
            return f"refused: {lease}"
        job = jobs.Job(
            grace_seconds=self._grace_seconds,
            reschedule=self._reschedule_on_shutdown,
            glance=lambda: self._reporter.glance(lease.flow_run_id),
            now=self._api.now,
        )
        with (
            run_logs.bind_run(lease.flow_run_id, lease.claim_id, lease.pool),
            self._stops.held_back(),
            self._wakes.open() as wakeup,
            self._keep(lease, job, wakeup) as keeper,
        ):
            if lease.adopts:
                outcome = self._adopt(lease, job)
            else:
                outcome = self._carry_out(lease, job, keeper)
            unreachable = job.stop_reason is planning.StopReason.UNREACHABLE
            # A worker that was paused finds its job ended, and perhaps its run put back.
            if (unreachable or keeper.may_be_over) and not _is_ours(keeper, job):
                outcome = planning.NOT_STARTED
            elif unreachable and self._is_running(lease):
                # Its engine may have been killed with a last state on its way to Prefect, which
                # must not be undone. Recovery judges the run when the lease has run out.
                return "left to recovery"
            return self._conclude(lease, outcome)

    def _is_running(self, lease: claims.Lease) -> bool:
        state = self._reporter.glance(lease.flow_run_id)
        return state is not None and state.is_running

    def _keep(
        self, lease: claims.Lease, job: jobs.Job, wakeup: wake_signals.Wakeup
    ) -> lease_keeper.LeaseKeeper:
        return lease_keeper.LeaseKeeper(
            book=self._ledger,
            lease=lease,
            lease_seconds=self._lease_seconds,
            wakeup=wakeup,
            on_stop=lambda reason: self._stop(lease, job, reason),
            may_be_restarted=job.may_be_restarted,
            memory_used=job.memory_used,
            stop_requested=lambda: self._stops.reason,
        )

    def _stop(self, lease: claims.Lease, job: jobs.Job, reason: planning.StopReason) -> None:
        if reason is planning.StopReason.LOST and self._is_adopted(lease):
            logger.warning("flow run %s was adopted by another worker", lease.flow_run_id)
            job.release()
        else:
            job.stop(reason)

    def _is_adopted(self, lease: claims.Lease) -> bool:
        """Whether the job of a lease that is lost has been taken over, rather than given up."""
        claim = self._ledger.get(lease.flow_run_id)
        return claim is not None and claim.adopts and claim.claim_id != lease.claim_id

    def _carry_out(
        self, lease: claims.Lease, job: jobs.Job, keeper: lease_keeper.LeaseKeeper
    ) -> planning.Outcome:
        run = self._reporter.read(lease.flow_run_id)
        decision = planning.decide_start(
            run.state if run else None,
            transition_id=lease.transition_id,
            cancel_requested=lease.cancel_requested,
        )
        if run is None or decision is planning.StartDecision.DROP:
            logger.info("flow run %s is not ours to start any more", lease.flow_run_id)
            return planning.NOT_STARTED
        if decision is planning.StartDecision.CANCEL:
            return planning.CANCELLED_BEFORE_START
        prepared = self._prepare(run, lease.pool)
        if isinstance(prepared, planning.Report):
            return prepared
        # The last look before user code starts; what comes later reaches the running job.
        # Without an answer nothing may start, since somebody else may have the lease by now.
        keeper.look()
        if job.stop_reason is not None:
            return self._counted(planning.plan_unstarted(job.stop_reason), lease, prepared)
        return self._counted(self._run(job, run, prepared), lease, prepared)

    def _adopt(self, lease: claims.Lease, job: jobs.Job) -> planning.Outcome:
        """Follow the job that a run has already; what has stopped it meanwhile reaches it there."""
        run = self._reporter.read(lease.flow_run_id)
        if run is None or (run.state and run.state.is_terminal and not run.state.is_cancelling):
            return planning.NOT_STARTED
        prepared = self._prepare(run, lease.pool)
        if isinstance(prepared, planning.Report):
            return prepared
        try:
            identifier = prepared.find(run)
            if identifier is None:
                raise executor_errors.InfrastructureNotFound("its worker was lost, and it is gone")
        except executor_errors.ExecutorError as error:
            return planning.plan_failure(error, started=True, stopped=job.stop_reason)
        outcome = self._run(job, run, prepared, adopted=identifier)
        return self._counted(outcome, lease, prepared)

    def _counted(
        self, outcome: planning.Outcome, lease: claims.Lease, prepared: job_preparation.Prepared
    ) -> planning.Outcome:
        if not isinstance(outcome, planning.Ending) or outcome.stopped is None:
            return outcome
        own = prepared.infra_retries
        retries = self._infra_retries if own is None else own
        return dataclasses.replace(outcome, attempt=lease.attempt, retries=retries)

    def _prepare(
        self, run: schemas.FlowRun, pool: str
    ) -> job_preparation.Prepared | planning.Report:
        try:
            return self._preparation.prepare(run, pool)
        except errors.DeploymentNotFound:
            return planning.without_deployment(run)
        except (errors.ObjectNotFound, errors.RequestRefused) as error:
            return planning.not_submitted(error.detail)
        except errors.ApiError:
            raise
        except executor_errors.ExecutorError as error:
            return planning.not_submitted(str(error))
        except Exception as error:
            # This run's error boundary: a stranger's executor, or a template nobody thought of.
            logger.exception("flow run %s: its job could not be prepared", run.id)
            return planning.not_submitted(f"{type(error).__name__}, see the worker's log")

    def _run(
        self,
        job: jobs.Job,
        run: schemas.FlowRun,
        prepared: job_preparation.Prepared,
        *,
        adopted: str | None = None,
    ) -> planning.Outcome:
        def note_started(identifier: str) -> None:
            logger.info("Flow run '%s' submitted to infrastructure '%s'", run.name, identifier)
            self._note_started(run, prepared, identifier)
            if prepared.reports_exit_code and not (run.state and run.state.is_running):
                self._begin(run)
            logger.info("Completed submission of flow run '%s'", run.id)

        logger.info("Worker '%s' submitting flow run '%s'", self._worker_name, run.id)
        submission = self._events.submitted(prepared.pool, prepared.configuration)
        try:
            result = job.run(run, prepared, note_started, adopted=adopted)
        except Exception as error:
            # This run's error boundary: executors are anybody's code.
            expected = isinstance(error, executor_errors.ExecutorError)
            logger.error("flow run %s: %s", run.id, error, exc_info=not expected)
            return planning.plan_failure(
                error, started=job.identifier is not None, stopped=job.stop_reason
            )
        if job.stop_reason is planning.StopReason.CANCEL:
            submission.cancelled(identifier=result.identifier)
        submission.executed(identifier=result.identifier, status_code=result.status_code)
        return planning.Ending(
            status_code=result.status_code,
            reported=result.reported_state,
            stopped=job.stop_reason,
            explanation=result.explanation,
            by_exit_code=prepared.reports_exit_code,
            last_lines=result.last_lines,
            may_restart=self._reschedule_on_shutdown or prepared.infra_retries is not None,
        )

    def _conclude(self, lease: claims.Lease, outcome: planning.Outcome) -> str:
        if isinstance(outcome, planning.Ending):
            outcome = self._explain(outcome)
        try:
            said = self._reporter.conclude(lease.flow_run_id, outcome)
        except errors.ApiError as error:
            run_id = lease.flow_run_id
            logger.warning("flow run %s: its end is kept to be reported later: %s", run_id, error)
            self._ledger.finish(lease, planning.outcome_to_text(outcome))
            said = "to be reported"
        else:
            claim = claims.NewClaim(lease.flow_run_id, lease.claim_id)
            self._ledger.close(claim, fence=lease.fence, failed=planning.is_failure(outcome))
        with contextlib.suppress(*error_boundary.EXPECTED):  # the next tick polls as well
            self._nudge(lease.pool)
        return said

    def _explain(self, ending: planning.Ending) -> planning.Ending:
        if ending.stopped is not planning.StopReason.TIME_LIMIT:
            return ending
        return dataclasses.replace(ending, explanation=self._limits.describe())

    def _note_started(
        self, run: schemas.FlowRun, prepared: job_preparation.Prepared, identifier: str
    ) -> None:
        self._put_labels(run_labels.RunLabels(flow_run_id=run.id, labels=prepared.labels))
        try:
            self._api.update_infrastructure_pid(run.id, identifier)
        except errors.ApiError as error:
            # The run goes on: its holder stops it by other means than the pid on the run.
            logger.warning("flow run %s: infrastructure pid not noted: %s", run.id, error)

    def _begin(self, run: schemas.FlowRun) -> None:
        """Say that a run without an engine has begun. Raises ExecutorError if it may not."""
        try:
            refusal = self._reporter.begin(run.id)
        except errors.ApiError as error:
            # Its end is told all the same.
            logger.warning("flow run %s: not told that it is Running: %s", run.id, error)
            return
        if refusal is not None:
            raise executor_errors.ExecutorError(f"Prefect does not let it run: {refusal}")


def _is_ours(keeper: lease_keeper.LeaseKeeper, job: jobs.Job) -> bool:
    """Whether a lease that had run out is nobody else's yet, so that its holder decides.

    Raises:
        redis.RedisError: the ledger is away; the claim is left to recovery.
    """
    keeper.look()
    return job.stop_reason is not planning.StopReason.LOST
