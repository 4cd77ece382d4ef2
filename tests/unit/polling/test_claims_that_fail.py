"""Claims whose answer was lost or that failed half-way."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from dispatcher import errors
from dispatcher.ledger import (
    claims,
)
from dispatcher.prefect_api import schemas
from tests.unit.polling.polling_scene import (
    BULK,
    FILTER,
    FOR_GOOD,
    POLL,
    POOL,
    Kind,
    Scene,
    assert_given_up,
    assert_nothing_is_doubled,
    stage,
    without_bulk,
)

S = schemas.StateType

SET_STATE = "/flow_runs/{id}/set_state"


def test_a_claim_whose_answer_was_lost_is_ours_and_published_once(scene: Scene) -> None:
    run_ids = scene.runs(3)
    scene.fail(Kind.REPLY_LOST, BULK)
    assert scene.poll() == 3
    assert sorted(scene.published_ids()) == sorted(run_ids)
    assert scene.asked(BULK) == 4
    assert {stage(scene, run_id) for run_id in run_ids} == {claims.Stage.PENDING}


def test_a_lost_answer_is_no_reason_to_take_another_workers_run(scene: Scene) -> None:
    mine, theirs = scene.runs(2)
    proposal = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=uuid4())
    scene.before(BULK, lambda: scene.quiet_api.set_flow_run_state(theirs, proposal))
    scene.fail(Kind.REPLY_LOST, BULK)
    assert scene.poll() == 1
    assert scene.published_ids() == [mine]
    assert stage(scene, theirs) is claims.Stage.CLOSED


def test_without_bulk_a_lost_answer_is_recognised_too(scene: Scene) -> None:
    without_bulk(scene, bulk=False)
    run_ids = scene.runs(2)
    scene.fail(Kind.REPLY_LOST, SET_STATE)
    assert scene.poll() == 2
    assert scene.published_ids() == run_ids


def test_an_old_server_is_asked_for_bulk_once(scene: Scene) -> None:
    without_bulk(scene, bulk=False)
    poller = scene.poller()
    scene.runs(1)
    assert poller.poll(POOL) == 1
    scene.runs(1)
    assert poller.poll(POOL) == 1
    assert scene.asked(BULK) == 1


def test_a_claim_that_was_cancelled_while_it_was_asked_for_is_not_published(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    scene.fail(Kind.REPLY_LOST, BULK)
    # Between Pending, which the lost answer told, and the note of it in the ledger.
    scene.before(BULK, lambda: scene.book.request_cancel(run_id), request=2)
    scene.poll()
    assert_given_up(scene, run_id)
    assert scene.state(run_id) is S.PENDING


def test_an_api_that_is_away_while_claiming_leaves_an_open_claim_on_a_scheduled_run(
    scene: Scene,
) -> None:
    run_ids = scene.runs(2)
    scene.fail(Kind.REQUEST_LOST, BULK, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll()
    assert scene.published == []
    assert [stage(scene, run_id) for run_id in run_ids] == [claims.Stage.OPENED, None]
    assert [scene.state(run_id) for run_id in run_ids] == [S.SCHEDULED] * 2
    assert_nothing_is_doubled(scene, run_ids)


def test_an_api_that_goes_away_after_claiming_leaves_a_run_that_its_claim_recognises(
    scene: Scene,
) -> None:
    run_ids = scene.runs(1)
    scene.fail(Kind.REPLY_LOST, BULK)
    scene.fail(Kind.REQUEST_LOST, FILTER, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll()
    assert scene.published == []
    for run_id in run_ids:
        claim, state = scene.book.get(run_id), scene.full_state(run_id)
        assert claim is not None
        assert claim.stage is claims.Stage.OPENED
        assert state.state_details.transition_id == claim.transition_id
    assert_nothing_is_doubled(scene, run_ids)


def test_an_api_that_goes_away_between_two_claims_leaves_the_first_published(
    scene: Scene,
) -> None:
    run_ids = scene.runs(4)
    scene.set_slots(100)
    scene.fail(Kind.REQUEST_LOST, BULK, after=1, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll()
    assert scene.published_ids() == run_ids[:1]
    assert [stage(scene, run_id) for run_id in run_ids[1:]] == [claims.Stage.OPENED, None, None]
    assert_nothing_is_doubled(scene, run_ids)


def test_without_bulk_too_a_failure_in_the_middle_leaves_the_first_published(
    scene: Scene,
) -> None:
    without_bulk(scene, bulk=False)
    run_ids = scene.runs(3)
    scene.fail(Kind.REQUEST_LOST, SET_STATE, after=1, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll()
    assert scene.published_ids() == run_ids[:1]
    assert [scene.state(run_id) for run_id in run_ids] == [S.PENDING, S.SCHEDULED, S.SCHEDULED]
    assert [stage(scene, run_id) for run_id in run_ids] == [
        claims.Stage.PENDING,
        claims.Stage.OPENED,
        None,
    ]
    assert_nothing_is_doubled(scene, run_ids)


def test_a_message_that_cannot_be_sent_leaves_accepted_claims(scene: Scene) -> None:
    run_ids = scene.runs(3)

    def fail_at_the_second(_: UUID) -> None:
        if len(scene.published) == 1:
            raise ConnectionError("the broker is away")

    scene.on_publish = fail_at_the_second
    with pytest.raises(ConnectionError):
        scene.poll()
    assert scene.published_ids() == run_ids[:1]
    assert [stage(scene, run_id) for run_id in run_ids] == [
        claims.Stage.PENDING,
        claims.Stage.PENDING,
        None,
    ]
    assert_nothing_is_doubled(scene, run_ids)


def test_the_lock_is_free_after_a_failure(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    scene.fail(Kind.REFUSED, POLL, status=500)
    with pytest.raises(errors.ApiResponseError):
        scene.poll()
    assert scene.poll() == 1
    assert scene.published_ids() == [run_id]
