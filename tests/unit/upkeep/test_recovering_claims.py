"""Claims that their poll, their task or their holder left behind."""

from __future__ import annotations

import pytest

from dispatcher import errors, planning
from dispatcher.ledger import claims
from dispatcher.planning import recovering
from dispatcher.prefect_api import schemas
from executors import errors as executor_errors
from tests.unit import parts
from tests.unit.upkeep.recovery_scene import BULK, LIMITS, RUN, RecoveryScene, assert_put_back

S = schemas.StateType
Stage = claims.Stage

# Claims that their poll left behind


def test_a_claim_that_prefect_never_granted_is_closed_and_its_run_left_alone(
    scene: RecoveryScene,
) -> None:
    claim = scene.opened(granted=False)
    scene.age(claim, 15)
    assert scene.tick() == 0
    assert scene.stage(claim.flow_run_id) is Stage.OPENED
    scene.age(claim, 10)
    assert scene.tick() == 1
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED
    assert scene.history(claim.flow_run_id) == ["Scheduled"]
    assert scene.published == []
    assert scene.tick() == 0


def test_a_claim_that_prefect_granted_without_anybody_hearing_of_it_is_sent(
    scene: RecoveryScene,
) -> None:
    claim = scene.opened(granted=True)
    scene.age(claim)
    assert scene.tick() == 1
    assert scene.published == [claim]
    assert scene.stage(claim.flow_run_id) is Stage.PENDING
    assert scene.tick() == 0
    assert scene.execute(claim) == "CRASHED"  # its task does as any other


def test_an_opened_claim_on_a_run_that_was_deleted_is_closed(scene: RecoveryScene) -> None:
    claim = scene.opened(granted=True)
    scene.objects.delete_run(claim.flow_run_id)
    scene.age(claim)
    scene.tick()
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED
    assert scene.published == []


def test_a_claim_that_was_granted_and_closed_meanwhile_is_not_sent(scene: RecoveryScene) -> None:
    claim = scene.opened(granted=True)
    scene.age(claim)
    scene.hooks[f"GET {RUN}"] = lambda: scene.book.request_cancel(claim.flow_run_id)
    scene.tick()
    assert scene.published == []


# Claims that no task has taken


def test_a_message_that_was_lost_is_sent_again_under_the_same_claim(scene: RecoveryScene) -> None:
    claim = scene.claim()
    scene.age(claim, 5)
    assert scene.tick() == 0
    scene.age(claim, 6)
    assert scene.tick() == 1
    assert scene.published == [claim]
    assert scene.kept(claim).resends == 1
    assert scene.tick() == 0  # it has its time again
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]


def test_a_message_is_sent_again_to_a_worker_with_room_for_its_run(scene: RecoveryScene) -> None:
    scene.seat = planning.Seat("roomy")
    claim = scene.claim()
    scene.age(claim)
    assert scene.tick() == 1
    assert scene.sent_to == ["roomy"]
    assert scene.kept(claim).meant_for == "roomy"


def test_a_message_for_a_worker_that_has_gone_is_sent_again_at_once(scene: RecoveryScene) -> None:
    gone, there = scene.claim(), scene.claim()
    for claim, node in ((gone, "gone"), (there, "there")):
        assert scene.book.resend(claim, node=node)
    scene.alive = {"there"}
    scene.seat = planning.Seat("there")
    assert scene.tick() == 1
    assert scene.published == [gone]
    assert scene.tick() == 0


def test_a_run_of_a_pool_that_nobody_serves_any_more_is_put_back(scene: RecoveryScene) -> None:
    scene.seat = None
    claim = scene.claim()
    scene.age(claim)
    assert scene.tick() == 1
    assert scene.published == []
    assert_put_back(scene, claim.flow_run_id, delay=2)


def test_a_run_that_no_worker_takes_over_is_put_back_in_the_end(scene: RecoveryScene) -> None:
    claim = scene.claim()
    for _ in range(recovering.MAX_RESENDS):
        scene.age(claim)
        scene.tick()
    assert scene.published == [claim] * recovering.MAX_RESENDS
    scene.age(claim)
    assert scene.tick() == 1
    assert_put_back(scene, claim.flow_run_id, delay=2)
    assert "No worker took the run over in time." in (scene.last_message(claim.flow_run_id) or "")
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED
    # A message that was only late finds out at once.
    assert scene.execute(claim) == "refused: closed"


def test_a_task_that_begins_while_its_message_is_sent_again_is_the_only_one(
    scene: RecoveryScene,
) -> None:
    claim = scene.claim()
    scene.age(claim)
    scene.hooks[f"GET {RUN}"] = lambda: scene.book.acquire(claim, owner="a")
    scene.tick()
    assert scene.published == []
    assert scene.stage(claim.flow_run_id) is Stage.HELD


@pytest.mark.parametrize("state_type", [S.RUNNING, S.COMPLETED, S.SCHEDULED, S.CANCELLED])
def test_a_claim_that_nobody_held_says_nothing_about_a_run_that_others_moved_on(
    scene: RecoveryScene, state_type: S
) -> None:
    # It may be Running on a worker of Prefect's own by now.
    claim = scene.claim()
    scene.objects.force(claim.flow_run_id, state_type)
    before = scene.history(claim.flow_run_id)
    scene.age(claim)
    assert scene.tick() == 1
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED
    assert scene.history(claim.flow_run_id) == before
    assert scene.published == []


@pytest.mark.parametrize("held", [True, False])
def test_a_run_that_is_pending_by_another_workers_claim_by_now_is_left_to_it(
    scene: RecoveryScene, held: bool
) -> None:
    claim = scene.lost() if held else scene.claim()
    scene.objects.force(claim.flow_run_id, S.SCHEDULED)
    scene.set_pending(claim.flow_run_id, claims.new_transition_id("somebody else"))
    before = scene.history(claim.flow_run_id)
    scene.age(claim)
    scene.tick()
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED
    assert scene.history(claim.flow_run_id) == before


def test_a_run_to_cancel_whose_claim_nobody_holds_is_cancelled(scene: RecoveryScene) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.CANCELLING)
    scene.age(claim)
    scene.tick()
    assert scene.history(claim.flow_run_id)[-1] == "Cancelled"
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED


# Claims whose holder is gone


def test_a_lost_run_that_had_not_begun_is_put_back(scene: RecoveryScene) -> None:
    claim = scene.lost()
    assert scene.tick() == 1
    assert_put_back(scene, claim.flow_run_id, delay=2)
    assert f"Its worker {parts.WORKER} was lost" in (scene.last_message(claim.flow_run_id) or "")
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED
    assert scene.tick() == 0


def test_a_run_that_kills_one_worker_after_the_other_is_crashed_in_the_end(
    scene: RecoveryScene,
) -> None:
    run = scene.objects.run(scene.deployment)
    for attempt, delay in ((1, 2), (2, 4), (3, 8)):
        claim = scene.lost(claim=scene.claim(run=run))
        assert scene.kept(claim).attempt == attempt
        scene.tick()
        assert_put_back(scene, run.id, delay=delay)
        scene.objects.force(run.id, S.SCHEDULED)
    scene.lost(claim=scene.claim(run=run))
    scene.tick()
    assert scene.history(run.id)[-1] == "Crashed"
    assert "It was started 4 times." in (scene.last_message(run.id) or "")


def test_a_lost_run_that_had_begun_is_crashed_and_names_its_worker(scene: RecoveryScene) -> None:
    claim = scene.lost(S.RUNNING)
    assert scene.tick() == 1
    assert scene.history(claim.flow_run_id)[-1] == "Crashed"
    assert parts.WORKER in (scene.last_message(claim.flow_run_id) or "")


def test_a_lost_run_that_had_begun_is_put_back_if_its_deployment_opted_in(
    scene: RecoveryScene,
) -> None:
    scene.deployment = scene.objects.deployment(parts.POOL, job_variables={"infra_retries": 1})
    run = scene.objects.run(scene.deployment)
    scene.lost(S.RUNNING, claim=scene.claim(run=run))
    scene.tick()
    assert_put_back(scene, run.id, delay=2)
    scene.objects.force(run.id, S.SCHEDULED)
    scene.lost(S.RUNNING, claim=scene.claim(run=run))
    scene.tick()
    assert scene.history(run.id)[-1] == "Crashed"


def test_a_run_itself_may_opt_in_too(scene: RecoveryScene) -> None:
    claim = scene.lost(S.RUNNING, claim=scene.claim(job_variables={"infra_retries": 5}))
    scene.tick()
    assert_put_back(scene, claim.flow_run_id, delay=2)


@pytest.mark.parametrize("value", ["many", -1, True, 1.5])
def test_an_opting_in_that_is_no_number_of_times_does_not_count(
    scene: RecoveryScene, value: object, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.lost(S.RUNNING, claim=scene.claim(job_variables={"infra_retries": value}))
    scene.tick()
    assert scene.history(claim.flow_run_id)[-1] == "Crashed"
    assert any("infra_retries is no number of times" in message for message in caplog.messages)


def test_a_lost_run_whose_deployment_is_gone_follows_the_general_rule(
    scene: RecoveryScene,
) -> None:
    claim = scene.lost()
    scene.objects.delete_deployment(scene.deployment.id)
    scene.tick()
    assert_put_back(scene, claim.flow_run_id, delay=2)


def test_a_lost_run_that_its_engine_was_to_retry_is_crashed(scene: RecoveryScene) -> None:
    claim = scene.lost(S.RUNNING, claim=scene.claim(empirical_policy={"retries": 3}))
    scene.quiet_api.set_flow_run_state(claim.flow_run_id, schemas.StateProposal(type=S.FAILED))
    assert scene.history(claim.flow_run_id)[-1] == "AwaitingRetry"
    scene.tick()
    assert scene.history(claim.flow_run_id)[-1] == "Crashed"


def test_a_lost_run_that_was_to_be_cancelled_is_cancelled(scene: RecoveryScene) -> None:
    claim = scene.lost(S.RUNNING, S.CANCELLING)
    scene.tick()
    assert scene.history(claim.flow_run_id)[-1] == "Cancelled"


@pytest.mark.parametrize(
    ("states", "suspended"),
    [([S.RUNNING, S.COMPLETED], False), ([S.RUNNING, S.FAILED], False), ([S.RUNNING], True)],
)
def test_a_lost_run_that_is_over_or_waits_for_somebody_is_left_as_it_is(
    scene: RecoveryScene, states: list[S], suspended: bool
) -> None:
    claim = scene.lost(*states)
    if suspended:
        scene.objects.force(claim.flow_run_id, S.PAUSED, "Suspended", pause_reschedule=True)
    before = scene.history(claim.flow_run_id)
    assert scene.tick() == 1
    assert scene.history(claim.flow_run_id) == before
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED


def test_a_lost_run_that_was_paused_in_its_process_is_crashed_naming_the_worker(
    scene: RecoveryScene,
) -> None:
    claim = scene.lost(S.RUNNING, S.PAUSED)
    scene.tick()
    assert scene.history(claim.flow_run_id)[-1] == "Crashed"
    assert parts.WORKER in str(scene.last_message(claim.flow_run_id))


def test_a_claim_on_a_run_that_was_deleted_is_closed(scene: RecoveryScene) -> None:
    claim = scene.lost()
    scene.objects.delete_run(claim.flow_run_id)
    scene.tick()
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED


def test_a_holder_that_shows_itself_in_time_keeps_its_run(scene: RecoveryScene) -> None:
    claim = scene.claim()
    lease = scene.book.acquire(claim, owner=f"{parts.WORKER}#1")
    assert isinstance(lease, claims.Lease)
    scene.age(claim, LIMITS.lost_lease_seconds - 1)
    assert scene.tick() == 0
    scene.age(claim)
    # It renews while recovery reads its run.
    scene.hooks[f"GET {RUN}"] = lambda: scene.book.renew(lease)
    scene.tick()
    assert scene.stage(claim.flow_run_id) is Stage.HELD
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]


def test_a_holder_that_comes_back_too_late_is_fenced_off(scene: RecoveryScene) -> None:
    claim = scene.claim()
    lease = scene.book.acquire(claim, owner=f"{parts.WORKER}#1")
    assert isinstance(lease, claims.Lease)
    scene.age(claim)
    scene.tick()
    assert scene.book.renew(lease) == (claims.Renewal.LOST, False)
    assert not scene.book.finish(lease, "outcome")
    later = scene.claim(run=scene.quiet_api.read_flow_run(claim.flow_run_id))
    again = scene.book.acquire(later, owner="another#1")
    assert isinstance(again, claims.Lease)
    assert again.fence > lease.fence
    assert again.attempt == 2


def test_a_run_that_moves_on_while_it_is_put_back_stays_as_it_is(scene: RecoveryScene) -> None:
    # An engine outlived its holder and begins just now.
    claim = scene.lost()
    scene.hooks[f"POST {BULK}"] = lambda: scene.set_state(claim, S.RUNNING)
    scene.tick()
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending", "Running"]


def test_a_slot_of_the_deployments_limit_is_free_again(scene: RecoveryScene) -> None:
    scene.deployment = scene.objects.deployment(parts.POOL, concurrency_limit=1)
    scene.lost()
    assert scene.objects.used_slots(scene.deployment.id) == 1
    scene.tick()
    assert scene.objects.used_slots(scene.deployment.id) == 0
    scene.lost(S.RUNNING, claim=scene.claim())
    scene.tick()
    assert scene.objects.used_slots(scene.deployment.id) == 0


def test_what_is_left_of_a_lost_job_is_killed_before_its_run_starts_again(
    scene: RecoveryScene,
) -> None:
    claim = scene.claim()
    scene.quiet_api.update_infrastructure_pid(claim.flow_run_id, parts.PID)
    scene.lost(claim=claim)
    seen: list[list[str]] = []
    scene.hooks[f"POST {BULK}"] = lambda: seen.append([pid for pid, _ in scene.script.kills])
    scene.tick()
    assert seen == [[parts.PID]]
    assert scene.script.kills == [(parts.PID, 0.0)]


@pytest.mark.parametrize(
    "error",
    [
        executor_errors.InfrastructureNotFound("no process 7"),
        executor_errors.InfrastructureNotAvailable("it is on host-2"),
        NotImplementedError("no means"),
        # a stranger's executor may raise anything
        OSError("strange"),
    ],
)
def test_a_run_is_decided_about_even_if_nothing_of_it_can_be_killed(
    scene: RecoveryScene, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.claim()
    scene.quiet_api.update_infrastructure_pid(claim.flow_run_id, parts.PID)
    scene.lost(claim=claim)
    scene.script.kill_errors = [error]
    scene.tick()
    assert_put_back(scene, claim.flow_run_id, delay=2)
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert bool(tracebacks) == isinstance(error, OSError)


def test_redis_that_goes_away_while_a_job_is_killed_ends_the_tick(scene: RecoveryScene) -> None:
    claim = scene.claim()
    scene.quiet_api.update_infrastructure_pid(claim.flow_run_id, parts.PID)
    scene.lost(claim=claim)
    scene.script.kill_errors = [errors.ApiUnreachable()]
    with pytest.raises(errors.ApiUnreachable):
        scene.tick()
