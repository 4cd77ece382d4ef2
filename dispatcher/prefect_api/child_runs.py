"""Runs that have started other runs, as ``run_deployment`` does, and may wait for their end."""

from __future__ import annotations

from collections.abc import Collection
from datetime import timedelta
from uuid import UUID

from dispatcher.prefect_api import client, schemas

# A child that is due for less than this may be claimed any moment.
PATIENCE = timedelta(seconds=15)


def parents_of_waiting(
    api: client.PrefectClient, run_ids: Collection[UUID], pools: Collection[str]
) -> set[UUID]:
    """Which of some runs have child runs in these pools that are due and that nobody has claimed.

    Whether such a parent waits for its children, its flow alone knows.

    Raises:
        dispatcher.errors.ApiError: the API could not be asked.
    """
    if not run_ids:
        return set()
    waiting = schemas.FlowRunFilter(
        parent_ids=run_ids,
        state_types=[schemas.StateType.SCHEDULED],
        work_pool_names=pools,
        due_before=api.now() - PATIENCE,
    )
    children = api.read_flow_runs(waiting)
    tasks = {child.parent_task_run_id for child in children if child.parent_task_run_id}
    if not tasks:
        return set()
    return {run.id for run in api.read_flow_runs(schemas.FlowRunFilter(task_run_ids=tasks))}
