"""What those who watch Celery's events are told of executions whose worker is gone."""

from __future__ import annotations

import pytest

from dispatcher import planning
from dispatcher.ledger import claims
from dispatcher.planning import recovering
from dispatcher.prefect_api import schemas
from tests.unit import parts
from tests.unit.upkeep.recovery_scene import RecoveryScene

S = schemas.StateType


@pytest.mark.parametrize(
    ("states", "told"),
    [
        ([], f"put back: Its worker {parts.WORKER} was lost"),
        ([S.RUNNING], f"CRASHED: Its worker {parts.WORKER} was lost"),
        ([S.RUNNING, S.CANCELLING], "CANCELLED: Flow run was cancelled."),
        ([S.RUNNING, S.COMPLETED], "COMPLETED"),
    ],
)
def test_they_hear_what_became_of_a_lost_run(
    scene: RecoveryScene, states: list[S], told: str
) -> None:
    claim = scene.lost(*states)
    scene.tick()
    assert scene.told[claim.claim_id].startswith(told)


def test_they_hear_of_an_end_that_was_kept(scene: RecoveryScene) -> None:
    claim = scene.claim()
    lease = scene.book.acquire(claim, owner="a")
    assert isinstance(lease, claims.Lease)
    scene.set_state(claim, S.RUNNING)
    scene.book.finish(lease, planning.outcome_to_text(planning.Ending(1)))
    scene.tick()
    assert scene.told == {claim.claim_id: "CRASHED"}


def test_they_never_saw_a_claim_that_no_worker_took(scene: RecoveryScene) -> None:
    claim = scene.claim()
    for _ in range(recovering.MAX_RESENDS + 1):
        scene.age(claim)
        scene.tick()
    assert scene.stage(claim.flow_run_id) is claims.Stage.CLOSED
    assert scene.told == {}
