"""What a poll does with runs that came too late."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from tests.unit.polling.polling_scene import FILTER, POOL, Kind, S, Scene, without_bulk


def late_runs(scene: Scene, number: int, **variables: Any) -> list[UUID]:
    """Runs of one deployment that were due every minute, the latest just now."""
    deployment = scene.objects.deployment(POOL, job_variables=variables)
    now = datetime.now(UTC) - timedelta(seconds=5)

    def due(minutes: int) -> dict[str, Any]:
        details = {"scheduled_time": (now - timedelta(minutes=minutes)).isoformat()}
        return {"type": "SCHEDULED", "state_details": details}

    return [scene.objects.run(deployment, state=due(minutes)).id for minutes in range(number)]


@pytest.mark.parametrize("bulk", [True, False])
def test_copies_that_are_too_late_are_skipped_and_the_others_claimed(
    scene: Scene, bulk: bool
) -> None:
    without_bulk(scene, bulk)
    scene.set_slots(2)
    run_ids = late_runs(scene, 10, skip_if_late=150)
    assert scene.poll() == 2
    assert {scene.state(run_id) for run_id in run_ids[:3]} == {S.PENDING, S.SCHEDULED}
    for run_id in run_ids[3:]:
        assert scene.state(run_id) is S.CANCELLED
        assert "due more than 150 s ago" in str(scene.full_state(run_id).message)


def test_a_hundred_copies_are_skipped_at_once_and_only_the_latest_is_claimed(scene: Scene) -> None:
    scene.set_slots(1)
    run_ids = late_runs(scene, 100, skip_if_late="latest-only")
    assert scene.poll() == 1
    assert scene.published_ids() == run_ids[:1]
    assert {scene.state(run_id) for run_id in run_ids[1:]} == {S.CANCELLED}


def test_more_copies_than_a_page_shows_are_skipped_too(scene: Scene) -> None:
    scene.set_slots(1)
    run_ids = late_runs(scene, 450, skip_if_late=60)
    scene.poll()
    assert {scene.state(run_id) for run_id in run_ids[2:]} == {S.CANCELLED}


@pytest.mark.parametrize("variables", [{}, {"skip_if_late": "soon"}])
def test_without_a_rule_late_runs_are_started(
    scene: Scene, variables: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    scene.set_slots(5)
    run_ids = late_runs(scene, 3, **variables)
    assert scene.poll() == 3
    assert {scene.state(run_id) for run_id in run_ids} == {S.PENDING}
    assert ("a number of seconds or 'latest-only'" in caplog.text) is bool(variables)


def test_runs_that_are_not_late_cost_no_further_look_at_their_deployment(scene: Scene) -> None:
    scene.set_slots(5)
    scene.runs(3)
    scene.poll()
    # The one by which the slots are known that its runs take.
    assert scene.asked("/deployments/{id}") == 1
    assert scene.asked(FILTER) == 0


def test_runs_that_may_be_so_late_cost_no_look_at_all_of_their_deployments(scene: Scene) -> None:
    scene.set_slots(5)
    late_runs(scene, 2, skip_if_late=600)
    assert scene.poll() == 2
    assert scene.asked(FILTER) == 0


def test_a_run_of_its_own_mind_does_not_decide_about_the_others(scene: Scene) -> None:
    scene.set_slots(5)
    (run_id,) = late_runs(scene, 1)
    deployment_id = scene.quiet_api.read_flow_run(run_id).deployment_id
    assert deployment_id is not None
    deployment = scene.quiet_api.read_deployment(deployment_id)
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": "2020-01-01T00:00:00Z"}}
    variables = {"skip_if_late": 1}
    own = scene.objects.run(deployment, state=state, job_variables=variables)
    assert scene.poll() == 2
    assert {scene.state(run_id), scene.state(own.id)} == {S.PENDING}


def test_a_deployment_that_is_gone_skips_nothing(scene: Scene) -> None:
    scene.set_slots(5)
    (run_id,) = late_runs(scene, 1, skip_if_late=1)
    run = scene.quiet_api.read_flow_run(run_id)
    scene.fail(Kind.REFUSED, "/deployments/{id}", status=404, body={"detail": "not found"})
    scene.poll()
    assert scene.state(run.id) is S.PENDING
