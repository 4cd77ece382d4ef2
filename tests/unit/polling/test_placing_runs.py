"""Runs get slots of workers that serve their pool and work queue, as many as they weigh."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatcher.ledger import claims, fleet
from dispatcher.prefect_api import schemas
from tests.unit.polling import polling_scene
from tests.unit.polling.polling_scene import POOL, Scene

S = schemas.StateType


def report(scene: Scene, name: str, slots: int, **values: Any) -> None:
    node = fleet.Node(name, 1, slots, False, "1", **{"pools": (POOL,), **values})
    scene.workers.report(node, lifetime_seconds=600)


@pytest.fixture
def scene(scene: Scene) -> Scene:
    scene.set_slots(0)
    return scene


def heavy(scene: Scene, slots: Any, *, late_by: float = 0.0) -> UUID:
    due = datetime.now(UTC) - timedelta(seconds=late_by)
    return due_run(scene, due, job_variables={"slots": slots})


def due_run(scene: Scene, due: datetime, **values: Any) -> UUID:
    state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due.isoformat()}}
    return scene.objects.run(scene.deployment, state=state, **values).id


def end(scene: Scene, run_id: UUID) -> None:
    claim = scene.book.get(run_id)
    assert claim is not None
    assert scene.book.close(claim.new)


def test_runs_are_claimed_for_workers_of_their_pool_alone(scene: Scene) -> None:
    report(scene, "ours", 2)
    report(scene, "others", 5, pools=("other",))
    runs = scene.runs(4)
    assert scene.poll() == 2
    assert {scene.meant_for(run_id) for run_id in scene.published_ids()} == {"ours"}
    assert set(scene.published_ids()) <= set(runs)


def test_a_pool_without_a_worker_of_its_own_asks_nothing_of_the_api(scene: Scene) -> None:
    report(scene, "others", 5, pools=("other",))
    scene.runs(1)
    assert scene.poll() == 0
    assert scene.asked(polling_scene.POLL) == 0


def test_slots_that_a_full_pool_leaves_are_for_those_that_can_use_them(scene: Scene) -> None:
    report(scene, "both", 1, pools=(POOL, "other"))
    report(scene, "ours", 1)
    (first,) = scene.runs(1)
    assert scene.poll() == 1
    assert scene.meant_for(first) == "ours"
    claim = claims.NewClaim(uuid4(), uuid4())
    opened = scene.book.open(
        [claim], pool="other", transition_id=uuid4(), slots=1, node="both", weight=1
    )
    assert opened
    scene.runs(1)
    assert scene.poll() == 0


def test_workers_of_an_earlier_version_are_sent_to_by_the_queue_that_they_share(
    scene: Scene,
) -> None:
    report(scene, "old-1", 1, pools=None)
    report(scene, "old-2", 1, pools=None)
    report(scene, "new", 1)
    scene.runs(4)
    assert scene.poll() == 3
    meant_for = sorted(str(scene.meant_for(run_id)) for run_id in scene.published_ids())
    assert meant_for == [claims.ANYBODY, claims.ANYBODY, "new"]


def test_a_worker_of_one_work_queue_gets_runs_of_that_queue(scene: Scene) -> None:
    scene.objects.queue(POOL, "gpu", priority=9)
    on_gpu = scene.objects.deployment(POOL, work_queue_name="gpu")
    report(scene, "gpu", 2, work_queues=("gpu",))
    plain = scene.runs(3)
    special = scene.objects.run(on_gpu).id
    assert scene.poll() == 1
    assert scene.meant_for(special) == "gpu"
    report(scene, "any", 1)
    assert scene.poll() == 1
    assert scene.published_ids()[-1] in plain


def test_runs_that_find_no_place_do_not_hide_those_behind_them(scene: Scene) -> None:
    scene.objects.queue(POOL, "gpu", priority=9)
    on_gpu = scene.objects.deployment(POOL, work_queue_name="gpu")
    report(scene, "any", 1)
    report(scene, "gpu", 1, work_queues=("gpu",))
    scene.runs(5)
    special = scene.objects.run(on_gpu).id
    assert scene.poll() == 2
    assert scene.meant_for(special) == "gpu"


def test_a_run_takes_as_many_slots_as_it_weighs(scene: Scene) -> None:
    report(scene, "w1", 3)
    first, second = heavy(scene, 2), heavy(scene, 2)
    light = scene.runs(2)
    assert scene.poll() == 2
    assert scene.published_ids() == [first, light[0]]
    end(scene, light[0])
    end(scene, first)
    assert scene.poll() == 2
    assert set(scene.published_ids()[2:]) == {second, light[1]}


def test_a_deployment_tells_what_its_runs_weigh(scene: Scene) -> None:
    report(scene, "w1", 3)
    deployment = scene.objects.deployment(POOL, job_variables={"slots": 3})
    scene.objects.run(deployment)
    own = scene.objects.run(deployment, job_variables={"slots": 1}).id
    assert scene.poll() == 1
    assert own not in scene.published_ids()
    end(scene, scene.published_ids()[0])
    assert scene.poll() == 1
    assert scene.book.used_slots(["w1"]) == {"w1": 1}


def test_a_run_that_has_waited_for_several_slots_has_them_kept_free(scene: Scene) -> None:
    report(scene, "w1", 2)
    (first,) = scene.runs(1)
    assert scene.poll() == 1
    waiting = heavy(scene, 2, late_by=15.0)
    scene.runs(2)
    assert scene.poll() == 0
    end(scene, first)
    assert scene.poll() == 1
    assert scene.published_ids()[-1] == waiting


def test_a_run_that_asks_for_more_than_any_worker_has_is_told_so(scene: Scene) -> None:
    report(scene, "w1", 3)
    lately, long_ago = heavy(scene, 9), heavy(scene, 9, late_by=60.0)
    (light,) = scene.runs(1)
    assert scene.poll() == 1
    assert scene.published_ids() == [light]
    assert scene.state(lately) is S.SCHEDULED
    state = scene.full_state(long_ago)
    assert state.type is S.CRASHED
    assert "asks for 9 slots" in str(state.message)
    assert "has 3" in str(state.message)


def test_what_is_no_number_of_slots_counts_as_one_and_is_told(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    report(scene, "w1", 1)
    run_id = heavy(scene, "many")
    assert scene.poll() == 1
    assert scene.published_ids() == [run_id]
    assert "slots is to be a whole number" in caplog.text


def test_the_end_of_a_run_calls_for_the_pool_that_has_wanted_for_slots(scene: Scene) -> None:
    report(scene, "w1", 1, pools=(POOL, "other"))
    scene.calls.want("other")
    (first, _) = scene.runs(2)
    assert scene.poll() == 1
    scene.asked_for.clear()
    end(scene, first)
    scene.calls.slot_freed("other")
    assert scene.asked_for == ["other", POOL]


def test_a_pool_whose_runs_all_have_slots_is_not_called_for(scene: Scene) -> None:
    report(scene, "w1", 5, pools=(POOL, "other"))
    scene.calls.want(POOL)
    scene.runs(1)
    assert scene.poll() == 1
    scene.asked_for.clear()
    scene.calls.slot_freed("other")
    assert scene.asked_for == ["other"]
