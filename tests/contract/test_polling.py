"""What a poll shows: which runs, in which order, within which limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas
from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing import prefect_objects

NOW = datetime.now(UTC)


def due(seconds: float) -> dict[str, object]:
    """A Scheduled state that is due so many seconds from now."""
    moment = NOW + timedelta(seconds=seconds)
    return {"type": "SCHEDULED", "state_details": {"scheduled_time": moment.isoformat()}}


def polled(prefect: client.PrefectClient, pool: str, *queues: str) -> list[UUID]:
    rows = prefect.get_scheduled_flow_runs(pool, work_queue_names=queues)
    return [row.flow_run.id for row in rows]


def test_a_row_tells_the_state_by_type_and_name(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    created = objects.run(deployment, job_variables={"env": {"A": "1"}}, tags=["t"])
    (row,) = prefect.get_scheduled_flow_runs(pool.name)
    assert row.work_pool_id == pool.id
    assert row.work_queue_id == pool.default_queue_id
    assert row.flow_run.id == created.id
    assert row.flow_run.state_type is StateType.SCHEDULED
    assert row.flow_run.state_name == "Scheduled"
    assert row.flow_run.state_id is not None
    assert row.flow_run.deployment_id == deployment.id
    assert row.flow_run.job_variables == {"env": {"A": "1"}}
    assert row.flow_run.next_scheduled_start_time is not None


def test_queue_priority_comes_before_lateness(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    urgent = objects.queue(pool.name, priority=1)
    long_due = objects.run(deployment, state=due(-600))
    due_since_a_minute = objects.run(deployment, state=due(-60))
    just_due = objects.run(deployment, state=due(-1), work_queue_name=urgent.name)
    assert polled(prefect, pool.name) == [just_due.id, long_due.id, due_since_a_minute.id]


def test_only_the_queues_asked_for(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    queue = objects.queue(pool.name, "queue ü#?+1")
    in_default = objects.run(deployment)
    in_queue = objects.run(deployment, work_queue_name=queue.name)
    assert polled(prefect, pool.name, queue.name) == [in_queue.id]
    assert polled(prefect, pool.name, "default") == [in_default.id]
    assert set(polled(prefect, pool.name)) == {in_default.id, in_queue.id}


def test_an_unknown_queue_or_pool_fails_the_whole_poll(
    prefect: client.PrefectClient, pool: schemas.WorkPool
) -> None:
    with pytest.raises(errors.ObjectNotFound, match=f"queue '{pool.name}/nope' not found"):
        prefect.get_scheduled_flow_runs(pool.name, work_queue_names=["default", "nope"])
    with pytest.raises(errors.ObjectNotFound, match='Work pool "no such pool" not found'):
        prefect.get_scheduled_flow_runs("no such pool")


def test_limit_and_due_time(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    first = objects.run(deployment, state=due(-20))
    second = objects.run(deployment, state=due(-10))
    future = objects.run(deployment, state=due(3600))

    def ask(limit: int | None = None, before: datetime | None = None) -> list[UUID]:
        rows = prefect.get_scheduled_flow_runs(pool.name, limit=limit, scheduled_before=before)
        return [row.flow_run.id for row in rows]

    assert ask() == [first.id, second.id, future.id]
    assert ask(before=NOW) == [first.id, second.id]
    assert ask(limit=1) == [first.id]
    assert ask(limit=0) == []


def test_more_than_a_server_gives_at_once_is_refused(
    prefect: client.PrefectClient, pool: schemas.WorkPool
) -> None:
    with pytest.raises(errors.RequestRefused, match="must be less than or equal to 200"):
        prefect.get_scheduled_flow_runs(pool.name, limit=201)


@pytest.mark.parametrize(
    ("state_type", "name", "shown"),
    [
        (StateType.SCHEDULED, "Late", True),
        (StateType.SCHEDULED, "AwaitingRetry", True),
        (StateType.SCHEDULED, "AwaitingConcurrencySlot", True),
        (StateType.PENDING, None, False),
        (StateType.CANCELLED, None, False),
        (StateType.PAUSED, None, False),
    ],
)
def test_every_scheduled_run_is_shown_and_no_other(
    state_type: StateType,
    name: str | None,
    shown: bool,
    objects: prefect_objects.PrefectObjects,
    deployment: schemas.Deployment,
) -> None:
    objects.run(deployment, state={"type": state_type.value, "name": name})
    assert bool(polled(objects.client, deployment.work_pool_name or "")) is shown


def test_a_retry_in_its_own_process_is_hidden_but_can_be_claimed(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment, empirical_policy={"retries": 1, "retry_delay": 0})
    objects.propose(flow_run.id, StateType.RUNNING)
    objects.propose(flow_run.id, StateType.FAILED)
    assert polled(prefect, pool.name) == []
    claim = objects.propose(flow_run.id, StateType.PENDING)
    assert claim.status is schemas.OrchestrationStatus.ACCEPT


def test_a_run_without_deployment_is_shown(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    flow_run = objects.run_without_deployment(work_pool_name=pool.name)
    assert polled(prefect, pool.name) == [flow_run.id]


def test_the_pool_limit_trims_polls_and_nothing_else(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    objects.change_pool(pool.name, concurrency_limit=2)
    runs = [objects.run(deployment, state=due(-number)) for number in (30, 20, 10)]
    assert polled(prefect, pool.name) == [runs[0].id, runs[1].id]

    objects.propose(runs[0].id, StateType.PENDING)
    assert polled(prefect, pool.name) == [runs[1].id]
    objects.propose(runs[1].id, StateType.PENDING)
    assert polled(prefect, pool.name) == []
    beyond = objects.propose(runs[2].id, StateType.PENDING)
    assert beyond.status is schemas.OrchestrationStatus.ACCEPT


def test_a_cancelling_run_frees_its_slot(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    objects.change_pool(pool.name, concurrency_limit=1)
    busy = objects.run(deployment, state={"type": "RUNNING"})
    waiting = objects.run(deployment)
    assert polled(prefect, pool.name) == []
    objects.propose(busy.id, StateType.CANCELLING)
    assert polled(prefect, pool.name) == [waiting.id]


def test_the_queue_limit_trims_its_own_runs(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    narrow = objects.queue(pool.name, priority=1, concurrency_limit=1)
    first = objects.run(deployment, state=due(-20), work_queue_name=narrow.name)
    objects.run(deployment, state=due(-10), work_queue_name=narrow.name)
    other = objects.run(deployment)
    assert polled(prefect, pool.name) == [first.id, other.id]


def test_a_paused_pool_or_queue_shows_nothing_but_can_be_claimed_from(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(deployment)
    objects.change_queue(pool.name, "default", is_paused=True)
    assert polled(prefect, pool.name) == []
    objects.change_queue(pool.name, "default", is_paused=False)
    assert polled(prefect, pool.name) == [flow_run.id]
    objects.change_pool(pool.name, is_paused=True)
    assert polled(prefect, pool.name) == []
    assert prefect.read_work_pool(pool.name).is_paused
    claim = objects.propose(flow_run.id, StateType.PENDING)
    assert claim.status is schemas.OrchestrationStatus.ACCEPT


def test_due_runs_can_be_asked_for_past_the_deployments_that_are_known(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    other = objects.deployment(pool.name)
    queue = objects.queue(pool.name)
    assert pool.default_queue_id is not None
    objects.run(deployment, state=due(-600))
    later, sooner = (objects.run(other, state=due(seconds)) for seconds in (-60, -120))
    objects.run(other, state=due(3600))
    objects.run(other, state=due(-60), work_queue_name=queue.name)
    objects.run_without_deployment(work_pool_name=pool.name)
    objects.force(objects.run(other).id, StateType.RUNNING)

    wanted = schemas.FlowRunFilter(
        state_types=[StateType.SCHEDULED],
        work_pool_names=[pool.name],
        work_queue_ids=[pool.default_queue_id],
        not_deployment_ids=[deployment.id],
        due_before=NOW,
    )
    found = prefect.read_flow_runs(wanted, sort="NEXT_SCHEDULED_START_TIME_ASC")

    assert [run.id for run in found] == [sooner.id, later.id]
    assert [run.work_queue_id for run in found] == [pool.default_queue_id] * 2
    assert [run.state_type for run in found] == [StateType.SCHEDULED] * 2


def test_late_runs_of_a_deployment_can_be_asked_for_and_skipped_in_one_go(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    newest, middle, oldest = (objects.run(deployment, state=due(s)) for s in (-60, -120, -180))
    objects.run(deployment, state=due(3600))
    objects.run(objects.deployment(pool.name), state=due(-600))

    wanted = schemas.FlowRunFilter(
        state_types=[StateType.SCHEDULED], deployment_ids=[deployment.id], due_before=NOW
    )
    found = prefect.read_flow_runs(wanted, sort="EXPECTED_START_TIME_DESC")
    assert [run.id for run in found] == [newest.id, middle.id, oldest.id]

    skipped = schemas.StateProposal(type=StateType.CANCELLED, message="too late")
    results = prefect.bulk_set_flow_run_state(
        [middle.id, oldest.id], skipped, only_state_types=[StateType.SCHEDULED]
    )
    assert {result.status for result in results} == {schemas.OrchestrationStatus.ACCEPT}
    assert prefect.read_flow_run(oldest.id).state_type is StateType.CANCELLED
    assert prefect.read_flow_run(newest.id).state_type is StateType.SCHEDULED
