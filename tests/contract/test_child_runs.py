"""Which runs have started runs that wait."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from dispatcher.prefect_api import child_runs, client, schemas
from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing import prefect_objects

LONG_DUE = datetime.now(UTC) - timedelta(hours=1)


def child(
    objects: prefect_objects.PrefectObjects,
    parent: schemas.FlowRun,
    deployment: schemas.Deployment,
    due: datetime = LONG_DUE,
) -> schemas.FlowRun:
    """A child run that is due since then, or will be."""
    run = objects.child_run(parent, deployment)
    objects.force(run.id, StateType.SCHEDULED, scheduled_time=due.isoformat())
    return run


def test_runs_whose_children_wait_are_told_from_others(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(pool.name)
    elsewhere = objects.deployment(objects.pool().name)
    parent, other, childless, of_other_pool, of_later = (objects.run(deployment) for _ in range(5))
    child(objects, parent, deployment)
    child(objects, parent, deployment)
    begun = child(objects, other, deployment)
    objects.force(begun.id, StateType.RUNNING)
    child(objects, of_other_pool, elsewhere)
    child(objects, of_later, deployment, datetime.now(UTC) + timedelta(hours=1))
    family = [run.id for run in (parent, other, childless, of_other_pool, of_later)]

    assert child_runs.parents_of_waiting(prefect, family, [pool.name]) == {parent.id}
    assert child_runs.parents_of_waiting(prefect, [childless.id], [pool.name]) == set()
    assert child_runs.parents_of_waiting(prefect, [], [pool.name]) == set()


def test_a_child_that_has_just_become_due_is_no_sign_of_anything(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    deployment = objects.deployment(pool.name)
    parent = objects.run(deployment)
    child(objects, parent, deployment, datetime.now(UTC))
    assert child_runs.parents_of_waiting(prefect, [parent.id], [pool.name]) == set()
