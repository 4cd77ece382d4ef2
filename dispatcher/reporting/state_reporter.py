"""Telling Prefect how a run ended, under its rules for states."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

from dispatcher import errors, planning
from dispatcher.prefect_api import client, schemas

logger = logging.getLogger(__name__)


class Reporter:
    """Proposes states. Nothing is forced, so a state that is final already stays.

    Every method raises :class:`dispatcher.errors.ApiError` if the API could not be asked, but for
    :meth:`glance`. That one uses ``hasty``, a client which does not wait for long.
    """

    def __init__(
        self,
        api: client.PrefectClient,
        *,
        hasty: client.PrefectClient | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._api = api
        self._hasty = hasty or api
        self._now = now

    def read(self, flow_run_id: UUID) -> schemas.FlowRun | None:
        """Read a run; ``None`` if it was deleted."""
        try:
            return self._api.read_flow_run(flow_run_id)
        except errors.ObjectNotFound:
            return None

    def glance(self, flow_run_id: UUID) -> schemas.State | None:
        """A run's state; ``None`` also if the API does not tell it at once."""
        try:
            return self._hasty.read_flow_run(flow_run_id).state
        except errors.ApiError:
            return None

    def conclude(self, flow_run_id: UUID, outcome: planning.Outcome) -> str:
        """Tell Prefect an outcome where Prefect does not know it yet; return the run's state."""
        if isinstance(outcome, planning.Report):
            return self.report(flow_run_id, outcome)
        run = None
        if planning.needs_state(outcome):
            run = self.read(flow_run_id)
            if run is None:
                return "deleted"
        verdict = planning.plan_report(outcome, run)
        if verdict is not None:
            return self.carry_out(flow_run_id, run, verdict)
        state = run.state.type if run and run.state else outcome.reported
        return str(state or outcome.stopped or "finished")

    def begin(self, flow_run_id: UUID) -> str | None:
        """Propose Running for a run; return why not if the server refuses it."""
        proposal = schemas.StateProposal(type=schemas.StateType.RUNNING)
        try:
            result = self._api.set_flow_run_state(flow_run_id, proposal)
        except errors.ObjectNotFound:
            return "it was deleted"
        if result.status is schemas.OrchestrationStatus.ACCEPT:
            return None
        return result.reason or str(result.status)

    def carry_out(
        self,
        flow_run_id: UUID,
        run: schemas.FlowRun | None,
        verdict: planning.Report | planning.Reschedule,
    ) -> str:
        """Carry out what was decided about a run as it was read; return what it is now."""
        if isinstance(verdict, planning.Report):
            return self.report(flow_run_id, verdict)
        assert run is not None
        extra = {"flow_run_id": flow_run_id}
        logger.warning("flow run %s: %s", flow_run_id, verdict.message, extra=extra)
        return planning.PUT_BACK if self._put_back(run, verdict) else planning.MOVED_ON

    def report(self, flow_run_id: UUID, report: planning.Report) -> str:
        """Propose the end of a run; return the state type that it has now."""
        extra = {"flow_run_id": flow_run_id}
        logger.info("flow run %s: %s", flow_run_id, report.message, extra=extra)
        result = self._propose(flow_run_id, report)
        if result is None:
            return "deleted"
        if planning.must_be_cancelled(result):
            # Somebody asked to cancel meanwhile, after which only Cancelled is taken.
            result = self._propose(flow_run_id, planning.cancelled_meanwhile(report)) or result
        if result.status is not schemas.OrchestrationStatus.ACCEPT:
            logger.info("flow run %s stays as it is: %s", flow_run_id, result.reason)
        return str(result.state.type) if result.state else "unknown"

    def _put_back(self, run: schemas.FlowRun, verdict: planning.Reschedule) -> bool:
        """Propose Scheduled for a run, unless it has moved on since it was read."""
        state_type = run.state.type if run.state else None
        # Prefect copies it from Scheduled to Pending.
        due = run.state.state_details.scheduled_time if run.state else None
        proposal = verdict.proposal(self._now(), due)
        try:
            results = self._api.bulk_set_flow_run_state(
                [run.id], proposal, only_state_types=[state_type] if state_type else []
            )
        except errors.BulkNotSupported:
            results = [self._api.set_flow_run_state(run.id, proposal)]
        accepted = schemas.OrchestrationStatus.ACCEPT
        return any(result.status is accepted for result in results)

    def _propose(
        self, flow_run_id: UUID, report: planning.Report
    ) -> schemas.OrchestrationResult | None:
        proposal = schemas.StateProposal(type=report.state, message=report.message)
        try:
            return self._api.set_flow_run_state(flow_run_id, proposal)
        except errors.ObjectNotFound:
            logger.info("flow run %s was deleted; nothing to report", flow_run_id)
            return None
