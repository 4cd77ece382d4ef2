"""What makes a claim safe: one winner among many, replays that are recognised, conditions."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent import futures
from uuid import UUID, uuid4

from dispatcher.prefect_api import client, schemas
from dispatcher.prefect_api.schemas import OrchestrationStatus, StateType
from dispatcher.testing import prefect_objects

CLAIMANTS = 10


def at_once(propose: Callable[[], schemas.OrchestrationResult]) -> Counter[OrchestrationStatus]:
    """Make the same call from many threads at the same moment and count the verdicts."""
    barrier = threading.Barrier(CLAIMANTS)

    def claim(_: int) -> schemas.OrchestrationResult:
        barrier.wait(timeout=30)
        return propose()

    with futures.ThreadPoolExecutor(CLAIMANTS) as pool:
        return Counter(result.status for result in pool.map(claim, range(CLAIMANTS)))


def test_one_of_many_claimants_wins(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    pending = schemas.StateProposal(type=StateType.PENDING)
    verdicts = at_once(lambda: prefect.set_flow_run_state(flow_run.id, pending))
    assert verdicts == {OrchestrationStatus.ACCEPT: 1, OrchestrationStatus.ABORT: CLAIMANTS - 1}
    assert [state.name for state in objects.states(flow_run.id)] == ["Scheduled", "Pending"]


def test_a_shared_transition_id_tells_the_losers_that_it_was_made(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    pending = schemas.StateProposal(type=StateType.PENDING, transition_id=uuid4())
    verdicts = at_once(lambda: prefect.set_flow_run_state(flow_run.id, pending))
    assert verdicts == {OrchestrationStatus.ACCEPT: 1, OrchestrationStatus.REJECT: CLAIMANTS - 1}


def test_a_repeated_claim_is_recognised_as_mine(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    mine = schemas.StateProposal(type=StateType.PENDING, transition_id=uuid4())
    prefect.set_flow_run_state(flow_run.id, mine)
    again = prefect.set_flow_run_state(flow_run.id, mine)
    assert (again.status, again.reason) == (
        OrchestrationStatus.REJECT,
        "This run has already made this state transition.",
    )
    assert again.state is not None
    assert again.state.state_details.transition_id == mine.transition_id

    other = prefect.set_flow_run_state(flow_run.id, schemas.StateProposal(type=StateType.PENDING))
    assert other.status is OrchestrationStatus.ABORT


def claim_all(
    prefect: client.PrefectClient, flow_run_ids: list[UUID]
) -> list[schemas.OrchestrationResult]:
    return prefect.bulk_set_flow_run_state(
        flow_run_ids,
        schemas.StateProposal(type=StateType.PENDING, name="Pending"),
        only_state_types=[StateType.SCHEDULED],
    )


def test_a_conditional_claim_leaves_finished_and_unknown_runs_alone(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    scheduled = objects.run(shared_deployment)
    completed = objects.run(shared_deployment, state={"type": "COMPLETED"})

    results = claim_all(prefect, [completed.id, scheduled.id, uuid4()])

    assert [(row.flow_run_id, row.status) for row in results] == [
        (scheduled.id, OrchestrationStatus.ACCEPT)
    ]
    state = prefect.read_flow_run(completed.id).state
    assert state is not None
    assert state.type is StateType.COMPLETED


def test_without_a_condition_every_run_has_a_verdict(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    scheduled = objects.run(shared_deployment)
    pending = objects.run(shared_deployment, state={"type": "PENDING"})
    results = prefect.bulk_set_flow_run_state(
        [scheduled.id, pending.id], schemas.StateProposal(type=StateType.PENDING)
    )
    verdicts = {row.flow_run_id: (row.status, row.reason) for row in results}
    assert verdicts == {
        scheduled.id: (OrchestrationStatus.ACCEPT, None),
        pending.id: (
            OrchestrationStatus.ABORT,
            "This run is in a PENDING state and cannot transition to a PENDING state.",
        ),
    }


def test_competing_bulk_claims_get_each_run_once(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    ids = [objects.run(shared_deployment).id for _ in range(6)]
    with futures.ThreadPoolExecutor(3) as pool:
        answers = list(pool.map(lambda _: claim_all(prefect, ids), range(3)))
    won = [
        row.flow_run_id
        for results in answers
        for row in results
        if row.status is OrchestrationStatus.ACCEPT
    ]
    assert Counter(won) == dict.fromkeys(ids, 1)


def test_a_bulk_claim_of_more_runs_than_one_request_takes(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    shared_deployment: schemas.Deployment,
) -> None:
    flow_run = objects.run(shared_deployment)
    unknown = [uuid4() for _ in range(client.BULK_LIMIT)]
    results = claim_all(prefect, [*unknown, flow_run.id])
    assert [row.flow_run_id for row in results] == [flow_run.id]


def test_a_bulk_claim_of_nothing_asks_nothing(prefect: client.PrefectClient) -> None:
    assert claim_all(prefect, []) == []
