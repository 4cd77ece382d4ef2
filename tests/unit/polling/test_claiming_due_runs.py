"""Due runs are claimed, or are not to be had."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from dispatcher import errors
from dispatcher.ledger import (
    claims,
)
from dispatcher.polling import poller as polling
from dispatcher.prefect_api import schemas
from tests.unit.polling.polling_scene import (
    BULK,
    POLL,
    POOL,
    Scene,
    assert_given_up,
    stage,
    without_bulk,
)

S = schemas.StateType

# The plain case


def test_a_due_run_is_claimed_in_the_ledger_then_in_prefect_then_published(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    stages = []
    scene.before(BULK, lambda: stages.append(("asking", stage(scene, run_id), scene.state(run_id))))
    scene.on_publish = lambda _: stages.append(
        ("publishing", stage(scene, run_id), scene.state(run_id))
    )
    assert scene.poll() == 1
    assert stages == [
        ("asking", claims.Stage.OPENED, S.SCHEDULED),
        ("publishing", claims.Stage.PENDING, S.PENDING),
    ]
    claim = scene.book.get(run_id)
    assert claim is not None
    assert scene.published == [(run_id, claims.NewClaim(run_id, claim.claim_id), POOL)]


def test_the_pending_state_carries_the_claims_transition_id(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    scene.poll()
    claim, state = scene.book.get(run_id), scene.full_state(run_id)
    assert claim is not None
    assert (state.name, state.state_details.transition_id) == ("Pending", claim.transition_id)
    assert claim.pool == POOL


def test_no_more_runs_are_claimed_than_slots_are_free(scene: Scene) -> None:
    first = scene.runs(3)
    assert scene.poll() == 3
    second = scene.runs(3)
    assert scene.poll() == 1
    assert scene.poll() == 0
    assert scene.published_ids() == [*first, second[0]]
    assert len(scene.book.open_run_ids()) == 4


def test_claims_of_all_pools_share_the_slots(scene: Scene) -> None:
    scene.book.open(
        [claims.NewClaim(uuid4(), uuid4()) for _ in range(3)],
        pool="other",
        transition_id=uuid4(),
        slots=4,
        node="w",
    )
    scene.runs(3)
    assert scene.poll() == 1


def test_the_most_urgent_queue_goes_first(scene: Scene) -> None:
    scene.objects.queue(POOL, "urgent", priority=1)
    scene.set_slots(1)
    scene.runs(1)
    urgent = scene.objects.run(scene.objects.deployment(POOL, work_queue_name="urgent")).id
    scene.poll()
    assert scene.published_ids() == [urgent]


def test_only_the_queues_to_serve_are_polled(scene: Scene) -> None:
    scene.objects.queue(POOL, "mine")
    scene.runs(1)
    mine = scene.objects.run(scene.objects.deployment(POOL, work_queue_name="mine")).id
    scene.set_slots(4, work_queues=("mine", "that-of-another-pool"))
    assert scene.poll() == 1
    assert scene.published_ids() == [mine]


def test_a_queue_that_does_not_exist_is_an_error(scene: Scene) -> None:
    scene.set_slots(4, work_queues=("none",))
    with pytest.raises(errors.ObjectNotFound):
        scene.poll()


def test_runs_are_claimed_ahead_of_their_time_but_not_too_early(scene: Scene) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)

    def run_in(seconds: float) -> UUID:
        due = (now + timedelta(seconds=seconds)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
        return scene.objects.run(scene.deployment, state=state).id

    soon, _later = run_in(9), run_in(11)
    scene.poll(prefetch_seconds=10.0, now=lambda: now)
    assert scene.published_ids() == [soon]


def test_a_run_that_was_put_back_is_claimed_when_it_is_due_and_not_earlier(scene: Scene) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    due = (now + timedelta(seconds=4)).isoformat()
    run = scene.objects.run(scene.deployment)
    scene.objects.force(run.id, S.SCHEDULED, name="AwaitingRetry", scheduled_time=due)
    later: list[tuple[float, Callable[[], None]]] = []

    def call_later(seconds: float, call: Callable[[], None]) -> None:
        later.append((seconds, call))

    scene.poll(prefetch_seconds=10.0, now=lambda: now, call_later=call_later)
    assert scene.published_ids() == []
    ((seconds, come_back),) = later
    assert seconds == pytest.approx(4.0)
    come_back()
    assert scene.asked_for == [POOL]
    after = now + timedelta(seconds=4)
    scene.poll(prefetch_seconds=10.0, now=lambda: after, call_later=call_later)
    assert scene.published_ids() == [run.id]


def test_a_run_that_was_made_just_now_is_due(scene: Scene) -> None:
    scene.runs(1)
    assert scene.poll(prefetch_seconds=0.0) == 1


# Nothing to do


def test_a_fleet_without_free_slots_asks_nothing_of_the_api(scene: Scene) -> None:
    scene.set_slots(0)
    scene.runs(1)
    scene.prefect.requests.clear()
    assert scene.poll() == 0
    assert scene.prefect.requests.total() == 0


@pytest.mark.parametrize("pool", ["docker-pool", "no-pool"])
def test_a_pool_of_unknown_type_or_none_at_all_is_left_alone(scene: Scene, pool: str) -> None:
    scene.objects.pool("docker-pool", type="docker")
    scene.objects.run(scene.objects.deployment("docker-pool"))
    assert scene.poller().poll(pool) == 0
    assert scene.asked(POLL) == 0
    assert scene.book.open_run_ids() == set()


def test_when_other_pools_took_the_slots_meanwhile_nothing_is_asked_for(scene: Scene) -> None:
    scene.runs(1)
    others = [claims.NewClaim(uuid4(), uuid4()) for _ in range(4)]
    scene.before(
        POLL,
        lambda: (
            scene.book.open(others, pool="other", transition_id=uuid4(), slots=4, node="w") and None
        ),
    )
    assert scene.poll() == 0
    assert scene.asked(BULK) == 0


# Runs that are not to be had


@pytest.mark.parametrize("state_type", [S.COMPLETED, S.FAILED, S.CRASHED, S.CANCELLED, S.RUNNING])
@pytest.mark.parametrize("bulk", [True, False])
def test_a_run_that_went_on_since_the_poll_is_not_brought_back(
    scene: Scene, state_type: S, bulk: bool
) -> None:
    without_bulk(scene, bulk)
    (run_id,) = scene.runs(1)
    scene.before(BULK, lambda: scene.objects.force(run_id, state_type))
    assert scene.poll() == 0
    assert_given_up(scene, run_id)
    assert scene.state(run_id) is state_type


@pytest.mark.parametrize("bulk", [True, False])
def test_a_run_that_another_worker_took_is_left_to_it(scene: Scene, bulk: bool) -> None:
    without_bulk(scene, bulk)
    (run_id,) = scene.runs(1)
    theirs = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=uuid4())
    scene.before(BULK, lambda: scene.quiet_api.set_flow_run_state(run_id, theirs))
    assert scene.poll() == 0
    assert_given_up(scene, run_id)
    details = scene.full_state(run_id).state_details
    assert details.transition_id == theirs.transition_id


@pytest.mark.parametrize("bulk", [True, False])
def test_a_run_that_was_deleted_since_the_poll_is_given_up(scene: Scene, bulk: bool) -> None:
    without_bulk(scene, bulk)
    (run_id,) = scene.runs(1)
    scene.before(BULK, lambda: scene.objects.delete_run(run_id))
    assert scene.poll() == 0
    assert_given_up(scene, run_id)


@pytest.mark.parametrize("bulk", [True, False])
def test_a_run_beyond_its_deployments_limit_frees_its_slot_and_says_why(
    scene: Scene, bulk: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=polling.__name__)
    without_bulk(scene, bulk)
    scene.deployment = scene.objects.deployment(POOL, concurrency_limit=1)
    first, second = scene.runs(2)
    assert scene.poll() == 1
    (started,) = scene.published_ids()
    (refused,) = {first, second} - {started}
    assert stage(scene, refused) is claims.Stage.CLOSED
    assert scene.book.open_run_ids() == {started}
    assert scene.prefect.states(refused)[-1].name == "AwaitingConcurrencySlot"
    assert caplog.messages == [
        f"flow run {refused} was not claimed: Deployment concurrency limit reached."
    ]


def test_a_run_of_a_deployment_with_limit_zero_is_refused(scene: Scene) -> None:
    scene.deployment = scene.objects.deployment(POOL, concurrency_limit=1)
    (run_id,) = scene.runs(1)
    scene.before(BULK, lambda: scene.objects.delete_deployment(scene.deployment.id))
    assert scene.poll() == 0
    assert_given_up(scene, run_id)


def test_a_refused_run_can_be_claimed_by_a_later_poll(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    scene.before(BULK, lambda: scene.objects.force(run_id, S.RUNNING))
    assert scene.poll() == 0
    scene.objects.force(run_id, S.SCHEDULED)
    assert scene.poll() == 1
    claim = scene.book.get(run_id)
    assert claim is not None
    assert claim.attempt == 1  # what was refused is none


def test_a_run_that_waits_long_for_its_deployments_limit_makes_no_attempts(scene: Scene) -> None:
    # Or one lost worker afterwards would count as the last of many.
    scene.deployment = scene.objects.deployment(POOL, concurrency_limit=1)
    scene.runs(2)
    assert scene.poll() == 1
    (started,) = scene.published_ids()
    for _ in range(5):
        scene.poll(now=lambda: datetime.now(UTC) + timedelta(hours=1))
    scene.objects.force(started, S.COMPLETED)
    assert scene.poll(now=lambda: datetime.now(UTC) + timedelta(hours=1)) == 1
    claim = scene.book.get(scene.published_ids()[1])
    assert claim is not None
    assert claim.attempt == 1
