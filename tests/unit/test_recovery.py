"""Recovery: whatever died, at whatever step, each run ends up with somebody who owns it."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent import futures
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis import Redis, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatcher import (
    claims,
    errors,
    ledger,
    locks,
    observations,
    planning,
    preparation,
    recovery,
    reporting,
)
from dispatcher.api import client, schemas
from dispatcher.planning import recovering
from dispatcher.testing import prefect_api
from executors import base
from executors import errors as executor_errors
from tests import valkey
from tests.unit import ledgers, parts

S = schemas.StateType
Stage = claims.Stage
Kind = prefect_api.FaultKind

RUN = "/flow_runs/{id}"
SET_STATE = "/flow_runs/{id}/set_state"
BULK = "/flow_runs/bulk_set_state"
FILTER = "/flow_runs/filter"
STATES = "/flow_run_states/"

LIMITS = planning.Limits(lease_seconds=15.0, infra_retries=3)
LONG = 100.0  # seconds untouched, far more than any limit


class RecoveryScene(parts.Scene):
    """A scene with a recover task whose ticks have gone on for long already."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.published: list[claims.NewClaim] = []
        self.revoked: list[UUID] = []
        self.on_publish: Callable[[], object] = lambda: None
        self.steady_for(LONG)

    def recoverer(self, **options: Any) -> recovery.Recoverer:
        values: dict[str, Any] = {
            "api": self.api,
            "book": self.book,
            "mutex": locks.Locks(self.redis),
            "seen": self.observations(),
            "prepare": self.preparation(),
            "reporter": reporting.Reporter(self.api),
            "publish": self._publish,
            "revoke": self.revoked.append,
            "limits": LIMITS,
            "worker_name": parts.WORKER_NAME,
        }
        return recovery.Recoverer(**values | options)

    def observations(self, redis: Redis | None = None) -> observations.Observations:
        return observations.Observations(
            redis or self.redis,
            patience_seconds=LIMITS.lost_lease_seconds,
            gap_seconds=LIMITS.gap_seconds,
        )

    def tick(self, **options: Any) -> int:
        return self.recoverer(**options).recover(parts.POOL)

    def steady_for(self, seconds: float) -> None:
        """Let ticks have gone on without a gap for so long, up to now."""
        now = self.book.now() * 1000
        key = f"{ledger.PREFIX}steady"
        self.redis.hset(key, "last", str(int(now)))
        self.redis.hset(key, "since", str(int(now - seconds * 1000)))

    def let_orphans_wait(self, seconds: float = LONG) -> None:
        """Let the runs that had no claim at the last tick have had none for so much longer."""
        key = f"{ledger.PREFIX}unclaimed:{parts.POOL}"
        members: Any = self.redis.zrange(key, 0, -1)
        for member in members:
            self.redis.zincrby(key, -seconds * 1000, member)

    def age(self, claim: claims.NewClaim, seconds: float = LONG) -> None:
        ledgers.age(self.redis, claim.flow_run_id, seconds)

    def opened(self, *, granted: bool) -> claims.NewClaim:
        """A claim whose poll went away before it could note what Prefect said."""
        run = self.objects.run(self.deployment)
        claim = claims.NewClaim(run.id, uuid4())
        transition_id = claims.new_transition_id(parts.WORKER_NAME)
        self.book.open([claim], pool=parts.POOL, transition_id=transition_id, slots=1000)
        if granted:
            self.set_pending(run.id, transition_id)
        return claim

    def set_pending(self, run_id: UUID, transition_id: UUID) -> None:
        pending = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=transition_id)
        result = self.quiet_api.set_flow_run_state(run_id, pending)
        assert result.status is schemas.OrchestrationStatus.ACCEPT

    def lost(self, *states: S, claim: claims.NewClaim | None = None) -> claims.NewClaim:
        """A claim whose holder is gone, at a time when its run had gone through these states."""
        claim = claim or self.claim()
        lease = self.book.acquire(claim, owner=f"{parts.WORKER}#1")
        assert isinstance(lease, claims.Lease)
        self.set_state(claim, *states)
        self.age(claim)
        return claim

    def kept(self, claim: claims.NewClaim) -> claims.Claim:
        kept = self.book.get(claim.flow_run_id)
        assert kept is not None
        return kept

    def last_state(self, run_id: UUID) -> schemas.State:
        state = self.quiet_api.read_flow_run(run_id).state
        assert state is not None
        return state

    def _publish(self, run: schemas.FlowRun, claim: claims.NewClaim, pool: str) -> None:
        assert (run.id, pool) == (claim.flow_run_id, parts.POOL)
        self.on_publish()
        self.published.append(claim)


@pytest.fixture
def scene(
    prefect: prefect_api.FakePrefect, redis: Redis, caplog: pytest.LogCaptureFixture
) -> Iterator[RecoveryScene]:
    caplog.set_level(logging.INFO, logger="dispatcher")
    made = RecoveryScene(prefect, redis)
    yield made
    made.close()


def assert_put_back(scene: RecoveryScene, run_id: UUID, *, delay: float) -> None:
    state = scene.last_state(run_id)
    assert (state.type, state.name) == (S.SCHEDULED, "AwaitingRetry")
    due = state.state_details.scheduled_time
    assert due is not None
    assert abs(due - datetime.now(UTC) - timedelta(seconds=delay)) < timedelta(seconds=1.5)


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
    "states", [[S.RUNNING, S.COMPLETED], [S.RUNNING, S.FAILED], [S.RUNNING, S.PAUSED]]
)
def test_a_lost_run_that_is_over_or_waits_for_somebody_is_left_as_it_is(
    scene: RecoveryScene, states: list[S]
) -> None:
    claim = scene.lost(*states)
    before = scene.history(claim.flow_run_id)
    assert scene.tick() == 1
    assert scene.history(claim.flow_run_id) == before
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED


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


# While the ledger cannot be trusted


@pytest.mark.parametrize("steady_seconds", [0.0, LIMITS.lost_lease_seconds - 2])
def test_leases_are_not_judged_until_every_holder_could_have_renewed(
    scene: RecoveryScene, steady_seconds: float
) -> None:
    scene.steady_for(steady_seconds)
    held, pending = scene.lost(S.RUNNING), scene.claim()
    scene.age(pending)
    assert scene.tick() == 1
    assert scene.stage(held.flow_run_id) is Stage.HELD
    assert scene.published == [pending]
    scene.steady_for(LIMITS.lost_lease_seconds)
    scene.tick()
    assert scene.history(held.flow_run_id)[-1] == "Crashed"


def let_nobody_look(scene: RecoveryScene, seconds: float) -> None:
    """Let the last look at the ledger be so much longer ago."""
    scene.redis.hincrby(f"{ledger.PREFIX}steady", "last", -int(seconds * 1000))


def test_a_time_in_which_nobody_saw_the_ledger_starts_the_wait_anew(scene: RecoveryScene) -> None:
    claim = scene.lost()
    let_nobody_look(scene, LIMITS.gap_seconds + 1)
    assert scene.tick() == 0
    assert scene.stage(claim.flow_run_id) is Stage.HELD


def test_a_pause_of_the_ticks_does_not_start_the_wait_anew_while_workers_see_the_ledger(
    scene: RecoveryScene,
) -> None:
    claim = scene.lost()
    for _ in range(3):
        let_nobody_look(scene, LIMITS.gap_seconds - 1)
        scene.observations().note()  # a worker's report
    assert scene.tick() == 1
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED


def test_a_new_ledger_is_not_steady(scene: RecoveryScene) -> None:
    scene.redis.flushall()
    seen = scene.observations()
    assert not seen.is_steady()
    assert not seen.is_steady()
    impatient = observations.Observations(scene.redis, patience_seconds=0, gap_seconds=10)
    assert impatient.is_steady()


# Ends that Prefect could not be told


@pytest.mark.parametrize(
    ("states", "outcome", "ends_as"),
    [
        ([S.RUNNING], planning.Ending(1, explanation="Out of memory?"), "Crashed"),
        ([S.RUNNING, S.COMPLETED], planning.Ending(0), "Completed"),
        ([S.RUNNING, S.CANCELLING], planning.Ending(-9, stopped=planning.StopReason.CANCEL), None),
        ([], planning.Ending(-15, stopped=planning.StopReason.SHUTDOWN), "AwaitingRetry"),
        ([], planning.not_submitted("no image"), "Crashed"),
        ([S.CANCELLING], planning.CANCELLED_BEFORE_START, "Cancelled"),
    ],
)
def test_an_end_that_was_kept_is_told_once_prefect_is_back(
    scene: RecoveryScene, states: list[S], outcome: planning.Outcome, ends_as: str | None
) -> None:
    claim = scene.claim()
    lease = scene.book.acquire(claim, owner="a")
    assert isinstance(lease, claims.Lease)
    scene.set_state(claim, *states)
    assert scene.book.finish(lease, planning.outcome_to_text(outcome))
    scene.fail(Kind.REQUEST_LOST, RUN, times=parts.FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.tick()
    assert scene.stage(claim.flow_run_id) is Stage.FINISHED
    scene.prefect.faults.clear()
    assert scene.tick() == 1
    assert scene.history(claim.flow_run_id)[-1] == (ends_as or "Cancelled")
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED
    before = scene.history(claim.flow_run_id)
    assert scene.tick() == 0
    assert scene.history(claim.flow_run_id) == before


def test_a_job_that_ends_while_prefect_is_away_is_told_of_by_recovery(
    scene: RecoveryScene,
) -> None:
    claim = scene.claim()
    scene.script.result = base.ExecutorResult(parts.PID, 137, explanation="Out of memory?")
    scene.fail(Kind.REQUEST_LOST, SET_STATE, times=parts.FOR_GOOD)
    assert scene.execute(claim) == "to be reported"
    scene.prefect.faults.clear()
    scene.tick()
    assert "Out of memory?" in (scene.last_message(claim.flow_run_id) or "")


def test_a_run_whose_end_is_still_to_be_told_is_no_orphan(scene: RecoveryScene) -> None:
    claim = scene.claim()
    lease = scene.book.acquire(claim, owner="a")
    assert isinstance(lease, claims.Lease)
    scene.set_state(claim, S.RUNNING)
    assert scene.book.finish(lease, "an outcome of another version")
    scene.tick()
    scene.let_orphans_wait()
    scene.tick()
    assert scene.history(claim.flow_run_id)[-1] == "Running"
    assert scene.stage(claim.flow_run_id) is Stage.FINISHED


def test_an_end_that_was_kept_for_a_run_that_was_deleted_is_given_up(scene: RecoveryScene) -> None:
    claim = scene.claim()
    lease = scene.book.acquire(claim, owner="a")
    assert isinstance(lease, claims.Lease)
    scene.book.finish(lease, planning.outcome_to_text(planning.Ending(0)))
    scene.objects.delete_run(claim.flow_run_id)
    scene.tick()
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED


# Runs that no claim knows


def orphan(
    scene: RecoveryScene, *states: S, worker_name: str = parts.WORKER_NAME, **values: Any
) -> UUID:
    """A run that a dispatcher made Pending and that went on, whose claim is gone."""
    run = scene.objects.run(scene.deployment, **values)
    scene.set_pending(run.id, claims.new_transition_id(worker_name))
    scene.set_state(claims.NewClaim(run.id, uuid4()), *states)
    return run.id


def test_a_pending_run_of_ours_without_a_claim_is_put_back_once_it_had_none_for_long(
    scene: RecoveryScene,
) -> None:
    run_id = orphan(scene)
    assert scene.tick() == 0
    scene.let_orphans_wait(LIMITS.lost_lease_seconds - 2)
    assert scene.tick() == 0
    assert scene.history(run_id)[-1] == "Pending"
    scene.let_orphans_wait()
    assert scene.tick() == 1
    assert_put_back(scene, run_id, delay=2)
    assert planning.UNCLAIMED in (scene.last_message(run_id) or "")
    assert scene.tick() == 0


def test_a_running_run_of_ours_without_a_claim_is_crashed(scene: RecoveryScene) -> None:
    run_id = orphan(scene, S.RUNNING)
    scene.tick()
    scene.let_orphans_wait()
    assert scene.tick() == 1
    assert scene.history(run_id)[-1] == "Crashed"


def test_a_running_run_of_ours_without_a_claim_is_put_back_if_it_opted_in(
    scene: RecoveryScene,
) -> None:
    run_id = orphan(scene, S.RUNNING, job_variables={"infra_retries": 1})
    scene.tick()
    scene.let_orphans_wait()
    scene.tick()
    assert_put_back(scene, run_id, delay=2)


def test_a_run_of_ours_that_waits_for_its_lost_engine_is_crashed(scene: RecoveryScene) -> None:
    run_id = orphan(scene, S.RUNNING, empirical_policy={"retries": 3})
    scene.quiet_api.set_flow_run_state(run_id, schemas.StateProposal(type=S.FAILED))
    assert scene.history(run_id)[-1] == "AwaitingRetry"
    scene.tick()
    scene.let_orphans_wait()
    scene.tick()
    assert scene.history(run_id)[-1] == "Crashed"


@pytest.mark.parametrize("states", [[], [S.RUNNING]])
def test_runs_of_other_workers_are_never_touched(scene: RecoveryScene, states: list[S]) -> None:
    theirs = orphan(scene, *states, worker_name="somebody else")
    before = scene.history(theirs)
    for _ in range(3):
        assert scene.tick() == 0
        scene.let_orphans_wait()
    assert scene.history(theirs) == before


def test_the_history_of_a_foreign_run_is_read_once_for_each_of_its_states(
    scene: RecoveryScene,
) -> None:
    theirs = orphan(scene, worker_name="somebody else")
    recoverer = scene.recoverer()

    def tick() -> int:
        scene.prefect.requests.clear()
        recoverer.recover(parts.POOL)
        scene.let_orphans_wait()
        return scene.prefect.requests["GET", STATES]

    assert [tick() for _ in range(4)] == [0, 1, 0, 0]
    scene.objects.force(theirs, S.RUNNING)
    assert [tick() for _ in range(3)] == [1, 0, 0]


def test_the_memory_of_foreign_runs_does_not_grow_without_end(scene: RecoveryScene) -> None:
    orphan(scene, worker_name="somebody else")
    recoverer = scene.recoverer()
    recoverer._ours.update({uuid4(): False for _ in range(recovery.MAX_REMEMBERED)})
    recoverer.recover(parts.POOL)
    scene.let_orphans_wait()
    recoverer.recover(parts.POOL)
    assert len(recoverer._ours) == 1


def test_runs_that_wait_to_be_claimed_are_no_orphans(scene: RecoveryScene) -> None:
    run_id = orphan(scene)
    scene.objects.force(run_id, S.SCHEDULED, name="AwaitingRetry")
    scene.tick()
    scene.let_orphans_wait()
    assert scene.tick() == 0


def test_a_run_that_got_a_claim_meanwhile_is_no_orphan_any_more(scene: RecoveryScene) -> None:
    claim = scene.claim()
    lease = scene.book.acquire(claim, owner="a")
    assert isinstance(lease, claims.Lease)
    scene.redis.flushall()
    scene.steady_for(LONG)
    assert scene.tick() == 0
    scene.let_orphans_wait(LIMITS.lost_lease_seconds - 2)
    assert scene.book.restore(lease)
    assert scene.tick() == 0
    # What it had to wait before counts no more.
    assert scene.book.close(claim, fence=lease.fence)
    assert scene.tick() == 0
    scene.let_orphans_wait(LIMITS.lost_lease_seconds - 2)
    assert scene.tick() == 0
    assert scene.history(claim.flow_run_id)[-1] == "Pending"


def test_orphans_wait_while_the_ledger_is_not_steady(scene: RecoveryScene) -> None:
    run_id = orphan(scene)
    scene.tick()
    scene.let_orphans_wait()
    scene.steady_for(1)
    assert scene.tick() == 0
    assert scene.history(run_id)[-1] == "Pending"
    scene.steady_for(LONG)
    assert scene.tick() == 1


def test_orphans_beyond_the_first_page_are_found_too(scene: RecoveryScene) -> None:
    found = [orphan(scene) for _ in range(client.PAGE_LIMIT + 2)]
    scene.tick()
    scene.let_orphans_wait()
    assert scene.tick() == len(found)


def test_runs_of_other_pools_are_left_to_their_own_ticks(scene: RecoveryScene) -> None:
    scene.objects.pool("other", type=parts.TYPE)
    claim, other = scene.lost(), claims.NewClaim(uuid4(), uuid4())
    scene.book.open([other], pool="other", transition_id=uuid4(), slots=1000)
    scene.age(other)
    assert scene.tick() == 1
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED
    assert scene.stage(other.flow_run_id) is Stage.OPENED


# Runs that were ended over their holder's head


@pytest.mark.parametrize("way", ["cancelled", "deleted"])
def test_the_job_of_a_run_that_was_ended_over_its_holders_head_is_stopped(
    scene: RecoveryScene, way: str
) -> None:
    claim = scene.claim()
    scene.script.blocks = True
    revoked: list[UUID] = []

    def end() -> None:
        scene.set_state(claim, S.RUNNING)
        if way == "deleted":
            scene.objects.delete_run(claim.flow_run_id)
        else:
            scene.objects.force(claim.flow_run_id, S.CANCELLED)
        scene.tick(revoke=revoked.append)

    scene.script.during = end
    scene.execute(claim)
    assert revoked == [claim.claim_id]
    assert scene.script.kills == [(parts.PID, parts.GRACE_SECONDS)]
    assert scene.stage(claim.flow_run_id) is Stage.CLOSED


def test_held_runs_are_looked_at_page_by_page(scene: RecoveryScene) -> None:
    for _ in range(client.PAGE_LIMIT + 1):
        scene.book.acquire(scene.claim(), owner="a")
    scene.prefect.requests.clear()
    assert scene.tick() == 0
    assert scene.revoked == []


# Ticks


def test_a_tick_beside_another_does_nothing(scene: RecoveryScene) -> None:
    claim = scene.lost()
    with locks.Locks(scene.redis).hold(f"recover:{parts.POOL}", lease_seconds=60) as held:
        assert held
        assert scene.tick() == 0
    assert scene.stage(claim.flow_run_id) is Stage.HELD


def test_ticks_on_many_machines_at_once_do_the_work_once(scene: RecoveryScene) -> None:
    class NoLocks(locks.Locks):
        """What locks are once their lease has run out during a long tick."""

        def __init__(self) -> None:
            self.names = iter(range(100))
            super().__init__(scene.redis)

        def hold(self, name: str, *, lease_seconds: float) -> Any:
            return super().hold(f"{name}:{next(self.names)}", lease_seconds=lease_seconds)

    lost = [scene.lost() for _ in range(3)]
    running = [scene.lost(S.RUNNING) for _ in range(3)]
    opened = [scene.opened(granted=True) for _ in range(3)]
    for claim in opened:
        scene.age(claim)
    mutex = NoLocks()
    with futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: scene.tick(mutex=mutex), range(4)))
    for claim in lost:
        history = ["Scheduled", "Pending", "AwaitingRetry"]
        assert scene.history(claim.flow_run_id) == history
    for claim in running:
        history = ["Scheduled", "Pending", "Running", "Crashed"]
        assert scene.history(claim.flow_run_id) == history
    # A message twice is harmless, but none is missing.
    assert set(scene.published) == set(opened)


@pytest.mark.parametrize("route", [RUN, BULK, SET_STATE, FILTER, "/deployments/{id}"])
@pytest.mark.parametrize("kind", [Kind.REQUEST_LOST, Kind.REPLY_LOST])
def test_what_a_tick_could_not_finish_a_later_one_does(
    scene: RecoveryScene, route: str, kind: prefect_api.FaultKind
) -> None:
    pending, running = scene.lost(), scene.lost(S.RUNNING)
    opened, ended = scene.opened(granted=True), scene.claim()
    lease = scene.book.acquire(ended, owner="a")
    assert isinstance(lease, claims.Lease)
    scene.book.finish(lease, planning.outcome_to_text(planning.Ending(1)))
    scene.age(opened)
    scene.fail(kind, route, times=parts.FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.tick()
    scene.prefect.faults.clear()
    for _ in range(3):
        scene.tick()
        scene.let_orphans_wait()
    assert scene.history(pending.flow_run_id)[2:] == ["AwaitingRetry"]
    assert scene.history(running.flow_run_id)[3:] == ["Crashed"]
    assert scene.history(ended.flow_run_id)[2:] == ["Crashed"]
    assert scene.published == [opened]
    for claim in (pending, running, ended):
        assert scene.stage(claim.flow_run_id) is Stage.CLOSED


def test_a_broker_that_is_away_leaves_the_message_to_a_later_tick(scene: RecoveryScene) -> None:
    claim = scene.opened(granted=True)
    scene.age(claim)

    def fail() -> None:
        raise RedisConnectionError

    scene.on_publish = fail
    with pytest.raises(RedisConnectionError):
        scene.tick()
    assert scene.published == []
    scene.on_publish = lambda: None
    scene.age(claim)
    scene.tick()
    assert scene.published == [claim]


def test_without_redis_nothing_is_decided(
    scene: RecoveryScene, valkey_server: valkey.ValkeyServer
) -> None:
    claim = scene.lost(S.RUNNING)
    impatient = valkey_server.client(timeout_seconds=0.1)
    scene.hooks[f"GET {RUN}"] = valkey_server.pause
    try:
        with pytest.raises(RedisError):
            scene.tick(
                book=ledger.RedisLedger(impatient),
                seen=scene.observations(impatient),
                mutex=locks.Locks(impatient),
            )
    finally:
        valkey_server.resume()
        impatient.close()
    assert scene.history(claim.flow_run_id)[-1] == "Running"


def test_one_run_that_cannot_be_recovered_harms_no_other(
    scene: RecoveryScene, caplog: pytest.LogCaptureFixture
) -> None:
    unreadable, refused, good = scene.claim(), scene.lost(S.RUNNING), scene.lost(S.RUNNING)
    lease = scene.book.acquire(unreadable, owner="a")
    assert isinstance(lease, claims.Lease)
    scene.book.finish(lease, "an outcome of another version")
    scene.fail(Kind.REFUSED, SET_STATE, status=422, body={"detail": "not so"})
    assert scene.tick() == 3
    crashed = {scene.history(claim.flow_run_id)[-1] for claim in (refused, good)}
    assert crashed == {"Running", "Crashed"}
    assert scene.stage(unreadable.flow_run_id) is Stage.FINISHED
    lines = [message for message in caplog.messages if "could not be recovered yet" in message]
    assert len(lines) == 2
    assert len([record for record in caplog.records if record.exc_info]) == 1
    scene.tick()
    scene.let_orphans_wait()
    scene.tick()
    assert scene.history(refused.flow_run_id)[-1] == "Crashed"


def test_one_orphan_that_cannot_be_recovered_harms_no_other(scene: RecoveryScene) -> None:
    orphans = [orphan(scene, S.RUNNING) for _ in range(3)]
    scene.tick()
    scene.let_orphans_wait()
    scene.fail(Kind.REFUSED, SET_STATE, status=422, body={"detail": "not so"})
    scene.tick()
    ends = sorted(scene.history(run_id)[-1] for run_id in orphans)
    assert ends == ["Crashed", "Crashed", "Running"]
    scene.tick()
    assert {scene.history(run_id)[-1] for run_id in orphans} == {"Crashed"}


def test_an_old_server_has_a_lost_run_put_back_too(scene: RecoveryScene) -> None:
    refusal = {"detail": "Method Not Allowed"}
    scene.fail(Kind.REFUSED, BULK, times=parts.FOR_GOOD, status=405, body=refusal)
    claim = scene.lost()
    scene.tick()
    assert_put_back(scene, claim.flow_run_id, delay=2)


# Whose work a Pending state is


def test_a_transition_id_shows_for_ever_which_dispatcher_made_it() -> None:
    ours = claims.new_transition_id("fleet")
    assert claims.made_by(ours, "fleet")
    assert not claims.made_by(ours, "another fleet")
    assert not claims.made_by(uuid4(), "fleet")
    assert not claims.made_by(None, "fleet")
    assert claims.new_transition_id("fleet") != ours


def test_the_last_pending_of_a_history_tells_whose_a_run_is() -> None:
    def pending(worker_name: str) -> schemas.State:
        details = schemas.StateDetails(transition_id=claims.new_transition_id(worker_name))
        return schemas.State(type=S.PENDING, name="Pending", state_details=details)

    running = schemas.State(type=S.RUNNING, name="Running")
    assert planning.last_pending_made_by([pending("other"), pending("fleet"), running], "fleet")
    assert not planning.last_pending_made_by([pending("fleet"), pending("other")], "fleet")
    assert not planning.last_pending_made_by([running], "fleet")


def test_the_preparation_knows_which_runs_opted_in(scene: RecoveryScene) -> None:
    prepare: preparation.Preparation = scene.preparation()
    run = scene.objects.run_without_deployment(work_pool_name=parts.POOL)
    assert prepare.infra_retries(run) is None
