"""Runs that lost their work queue, and with it their pool, besides their worker and claim."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from dispatcher.ledger import rounds
from dispatcher.prefect_api import client, schemas
from dispatcher.testing import prefect_api
from dispatcher.upkeep import orphan_search
from tests.unit import parts
from tests.unit.upkeep.recovery_scene import RecoveryScene, orphan

S = schemas.StateType
FILTER = "/flow_runs/filter"


def adrift(scene: RecoveryScene, *states: S, **values: Any) -> UUID:
    """An orphan whose work pool has been deleted."""
    run_id = orphan(scene, *states, **values)
    scene.objects.delete_pool(parts.POOL)
    return run_id


def let_ticks_find(scene: RecoveryScene) -> None:
    scene.tick()
    scene.let_orphans_wait()
    scene.tick()


@pytest.mark.parametrize("states", [[], [S.RUNNING]])
def test_a_run_whose_pool_was_deleted_is_crashed_and_its_job_killed(
    scene: RecoveryScene, states: list[S]
) -> None:
    run_id = adrift(scene, *states)
    scene.quiet_api.update_infrastructure_pid(run_id, "host:1")
    let_ticks_find(scene)
    assert scene.history(run_id)[-1] == "Crashed"
    assert scene.script.kills == [("host:1", 0.0)]


@pytest.mark.parametrize("values", [{}, {"job_variables": {"infra_retries": 3}}])
def test_a_run_that_could_be_started_again_says_why_it_is_not(
    scene: RecoveryScene, values: dict[str, object]
) -> None:
    run_id = adrift(scene, *([S.RUNNING] if values else []), **values)
    let_ticks_find(scene)
    state = scene.last_state(run_id)
    assert state.type is S.CRASHED
    assert "work queue was deleted" in str(state.message)


def test_a_run_to_be_cancelled_whose_pool_was_deleted_is_cancelled(scene: RecoveryScene) -> None:
    run_id = adrift(scene, S.RUNNING, S.CANCELLING)
    let_ticks_find(scene)
    assert scene.last_state(run_id).type is S.CANCELLED


def test_a_run_without_a_pool_that_waits_for_a_retry_of_prefects_stays_as_it_is(
    scene: RecoveryScene,
) -> None:
    run_id = orphan(scene)
    scene.objects.force(run_id, S.SCHEDULED, name="AwaitingRetry")
    scene.objects.delete_pool(parts.POOL)
    let_ticks_find(scene)
    assert scene.last_state(run_id).type is S.SCHEDULED


def test_runs_that_others_started_stay_as_they_are(scene: RecoveryScene) -> None:
    run_id = adrift(scene, S.RUNNING, worker_name="somebody else")
    let_ticks_find(scene)
    assert scene.last_state(run_id).type is S.RUNNING


def test_a_run_that_has_no_pool_is_looked_for_now_and_then(
    scene: RecoveryScene, prefect: prefect_api.FakePrefect
) -> None:
    recoverer = scene.recoverer()
    prefect.requests.clear()
    for _ in range(5):
        recoverer.recover()
    assert prefect.requests["POST", FILTER] == 5 + 1


def test_a_server_with_many_unfinished_runs_is_asked_less_often(scene: RecoveryScene) -> None:
    for _ in range(client.PAGE_LIMIT + 1):
        scene.objects.force(scene.objects.run(scene.deployment).id, S.RUNNING)
    scene.search().find([])
    name = orphan_search.ADRIFT_SCOPE
    left = scene.redis.pttl(rounds.Rounds(scene.redis)._key(name))
    assert left > 1000 * orphan_search.ADRIFT_SECONDS
