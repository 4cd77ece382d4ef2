"""Ending runs that are not to be started, before anybody has claimed them."""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from dispatcher import errors, planning
from dispatcher.prefect_api import client, schemas

SCHEDULED = schemas.StateType.SCHEDULED


def end_unclaimed(api: client.PrefectClient, run_ids: Sequence[UUID], end: planning.Report) -> int:
    """End runs in one request; one that somebody has claimed meanwhile goes on. Returns how many.

    Raises:
        errors.ApiError: the API could not be asked, or did not answer.
    """
    if not run_ids:
        return 0
    proposal = schemas.StateProposal(type=end.state, message=end.message)
    try:
        results = api.bulk_set_flow_run_state(run_ids, proposal, only_state_types=[SCHEDULED])
    except errors.BulkNotSupported:
        results = [api.set_flow_run_state(run_id, proposal) for run_id in run_ids]
    return sum(result.status is schemas.OrchestrationStatus.ACCEPT for result in results)
