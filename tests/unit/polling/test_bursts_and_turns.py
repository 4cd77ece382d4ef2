"""Many due runs: bursts, and whose turn it is."""

from __future__ import annotations

import threading
from uuid import UUID

import pytest

from dispatcher import errors
from dispatcher.ledger import (
    claims,
)
from dispatcher.prefect_api import client, schemas
from tests.unit.polling.polling_scene import (
    BULK,
    FILTER,
    FOR_GOOD,
    POLL,
    POOL,
    Kind,
    Scene,
    assert_nothing_is_doubled,
    stage,
)

S = schemas.StateType

# Bursts


def test_over_one_connection_a_burst_is_claimed_in_the_servers_order(scene: Scene) -> None:
    scene.set_slots(100)
    run_ids = scene.runs(25)
    assert scene.poll() == len(run_ids)
    assert scene.published_ids() == run_ids
    assert scene.asked(BULK) == 25


def test_over_one_connection_a_run_is_published_before_the_next_is_asked_for(scene: Scene) -> None:
    scene.set_slots(100)
    scene.runs(2)
    seen: list[int] = []
    scene.before(BULK, lambda: seen.append(len(scene.published)))
    scene.before(BULK, lambda: seen.append(len(scene.published)))
    scene.poll()
    assert seen == [0, 1]


def test_a_burst_of_more_runs_than_a_server_shows_at_once_is_claimed_by_one_poll(
    scene: Scene,
) -> None:
    scene.set_slots(1000)
    run_ids = scene.runs(client.PAGE_LIMIT + 15)
    assert scene.poll() == client.PAGE_LIMIT + 15
    assert scene.asked(POLL) == 2
    assert sorted(scene.published_ids()) == sorted(run_ids)


def test_several_runs_are_claimed_at_once(scene: Scene) -> None:
    scene.runs(2)
    both = threading.Barrier(2, timeout=20)
    for _ in range(2):
        scene.before(BULK, both.wait)
    assert scene.poll(connections=4) == 2


def test_what_goes_wrong_with_one_run_does_not_keep_the_others_from_being_published(
    scene: Scene,
) -> None:
    run_ids = scene.runs(4)
    scene.fail(Kind.REFUSED, BULK, status=500)
    with pytest.raises(errors.ApiResponseError):
        scene.poll(connections=4)
    assert len(scene.published) == 3
    (failed,) = set(run_ids) - set(scene.published_ids())
    assert stage(scene, failed) is claims.Stage.OPENED
    assert_nothing_is_doubled(scene, run_ids)


def test_once_the_api_is_away_no_further_claim_is_begun(scene: Scene) -> None:
    scene.set_slots(100)
    scene.runs(50)
    scene.fail(Kind.REQUEST_LOST, BULK, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll(connections=2)
    # Each of the two may have begun another one before it heard of the other's failure.
    assert len(scene.book.open_run_ids()) <= 3


# Taking turns


def claimed_of(scene: Scene, deployment: schemas.Deployment) -> int:
    runs = [scene.quiet_api.read_flow_run(run_id) for run_id in scene.published_ids()]
    return sum(run.deployment_id == deployment.id for run in runs)


def end_one(scene: Scene, run_id: UUID) -> None:
    """The run has been executed, and its slot is free."""
    scene.objects.force(run_id, S.COMPLETED)
    claim = next(claim for claimed, claim, _ in scene.published if claimed == run_id)
    assert scene.book.close(claim)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_a_long_backlog_of_one_deployment_does_not_block_another(scene: Scene, slots: int) -> None:
    scene.set_slots(slots)
    scene.runs(client.PAGE_LIMIT + 100)
    late = scene.objects.run(scene.objects.deployment(POOL)).id
    poller = scene.poller()
    poller.poll(POOL)
    if late not in scene.published_ids():
        end_one(scene, scene.published_ids()[-1])
        poller.poll(POOL)
    assert late in scene.published_ids()


@pytest.mark.parametrize("slots", [1, 3])
def test_backlogs_are_served_by_turns(scene: Scene, slots: int) -> None:
    scene.set_slots(slots)
    deployments = [scene.deployment, *(scene.objects.deployment(POOL) for _ in range(2))]
    for deployment in deployments:
        for _ in range(30):
            scene.objects.run(deployment)
    poller = scene.poller()
    poller.poll(POOL)
    while len(scene.published) < 30:
        end_one(scene, scene.published_ids()[-slots])
        poller.poll(POOL)
    shares = [claimed_of(scene, deployment) for deployment in deployments]
    assert max(shares) - min(shares) <= 2


def test_turns_do_not_take_slots_from_a_queue_of_higher_priority(scene: Scene) -> None:
    scene.objects.queue(POOL, "urgent", priority=1)
    urgent = scene.objects.deployment(POOL, work_queue_name="urgent")
    scene.runs(5)
    urgent_ids = [scene.objects.run(urgent).id for _ in range(10)]
    scene.set_slots(2)
    poller = scene.poller()
    poller.poll(POOL)
    while len(scene.published) < 10:
        end_one(scene, scene.published_ids()[-2])
        poller.poll(POOL)
    assert sorted(scene.published_ids()) == sorted(urgent_ids)


def test_turns_stay_within_a_queues_limit(scene: Scene) -> None:
    scene.objects.change_queue(POOL, "default", concurrency_limit=2)
    scene.runs(5)
    other = scene.objects.run(scene.objects.deployment(POOL)).id
    poller = scene.poller()
    assert poller.poll(POOL) == 2
    assert poller.poll(POOL) == 0
    assert other in scene.published_ids()


def test_a_deployment_at_its_limit_leaves_the_slots_to_others_in_the_same_poll(
    scene: Scene,
) -> None:
    scene.set_slots(3)
    full = scene.objects.deployment(POOL, concurrency_limit=1)
    for _ in range(20):
        scene.objects.run(full)
    others = scene.runs(2)
    assert scene.poll() == 3
    assert claimed_of(scene, full) == 1
    assert set(others) <= set(scene.published_ids())


@pytest.mark.parametrize("route", ["/work_pools/{pool}/queues/filter", FILTER])
def test_a_server_that_does_not_tell_who_else_waits_is_served_all_the_same(
    scene: Scene, route: str
) -> None:
    scene.set_slots(1)
    first, *_ = scene.runs(5)
    scene.fail(Kind.REFUSED, route, status=404, times=FOR_GOOD)
    assert scene.poll() == 1
    assert scene.published_ids() == [first]


def test_a_look_at_others_costs_nothing_while_there_is_room_for_all(scene: Scene) -> None:
    scene.runs(3)
    assert scene.poll() == 3
    assert scene.asked(FILTER) == 0


def test_a_backlog_costs_at_most_two_requests_more_for_a_poll(scene: Scene) -> None:
    scene.set_slots(1)
    scene.runs(20)
    poller = scene.poller()
    poller.poll(POOL)
    assert scene.asked(FILTER) <= 2
    for _ in range(5):
        before = scene.asked(FILTER)
        end_one(scene, scene.published_ids()[-1])
        poller.poll(POOL)
        assert scene.asked(FILTER) - before <= 2
