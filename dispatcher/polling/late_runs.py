"""Runs that are too late: skipped without a slot, where their deployment wants it so."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from dispatcher import errors, planning
from dispatcher.polling import endings
from dispatcher.prefect_api import catalog, client, schemas

State = schemas.StateType

# Runs are claimed ahead of their time, so on a fleet that keeps up none is as late as this, and no
# deployment has to be read for its sake.
UNREMARKABLE = timedelta(seconds=1)
# What is left after so many pages is for the next poll.
MAX_PAGES = 10
NEWEST_FIRST = "EXPECTED_START_TIME_DESC"

logger = logging.getLogger(__name__)


class LateRuns:
    """Ends runs as Cancelled that came too late by their job variable ``skip_if_late``."""

    def __init__(self, api: client.PrefectClient, known: catalog.Catalog) -> None:
        self._api = api
        self._catalog = known

    def skip(self, rows: Sequence[schemas.ScheduledFlowRun], now: datetime) -> int:
        """End what is too late of the deployments of a poll's rows; return how many runs.

        Raises:
            errors.ApiError: the API could not be asked, or did not answer.
        """
        late = [row.flow_run for row in rows if planning.is_late(row.flow_run, now - UNREMARKABLE)]
        skipped = 0
        for deployment_id, runs in _by_deployment(late).items():
            rule = self._rule(deployment_id)
            if rule is None:
                continue
            if any(planning.is_late(run, rule.due_before(now)) for run in runs):
                skipped += self._skip_all(deployment_id, rule, now)
        return skipped

    def _rule(self, deployment_id: UUID) -> planning.LateRule | None:
        try:
            deployment = self._catalog.deployment(deployment_id)
        except errors.ObjectNotFound:
            return None
        try:
            return planning.late_rule(deployment.job_variables.get(planning.SKIP_IF_LATE_VARIABLE))
        except ValueError as error:
            logger.warning(
                "deployment %r: the job variable %s is to be %s, and is left out of account",
                deployment.name,
                planning.SKIP_IF_LATE_VARIABLE,
                error,
            )
            return None

    def _skip_all(self, deployment_id: UUID, rule: planning.LateRule, now: datetime) -> int:
        wanted = schemas.FlowRunFilter(
            state_types=[State.SCHEDULED],
            deployment_ids=[deployment_id],
            due_before=rule.due_before(now),
        )
        skipped = 0
        for _ in range(MAX_PAGES):
            page = self._api.read_flow_runs(wanted, limit=client.PAGE_LIMIT, sort=NEWEST_FIRST)
            doomed = [run.id for run in planning.too_late(page, rule, now)]
            skipped += endings.end_unclaimed(self._api, doomed, rule.skipped)
            if len(page) < client.PAGE_LIMIT or not doomed:
                break
        if skipped:
            logger.info("%d late runs of deployment %s were skipped", skipped, deployment_id)
        return skipped


def _by_deployment(runs: Iterable[schemas.FlowRun]) -> dict[UUID, list[schemas.FlowRun]]:
    grouped: dict[UUID, list[schemas.FlowRun]] = {}
    for run in runs:
        if run.deployment_id is not None:
            grouped.setdefault(run.deployment_id, []).append(run)
    return grouped
