"""Runs that no claim knows, ends that were not told, runs ended over their holder's head."""

from __future__ import annotations

from uuid import UUID, uuid4

import pytest

from dispatcher import errors, planning
from dispatcher.ledger import claims, keys, recovery_memory
from dispatcher.prefect_api import client, schemas
from dispatcher.testing import prefect_api
from dispatcher.upkeep import orphan_search
from executors import base
from tests.unit import parts
from tests.unit.upkeep.recovery_scene import (
    LIMITS,
    LONG,
    RUN,
    SET_STATE,
    RecoveryScene,
    assert_put_back,
    orphan,
)

S = schemas.StateType
Stage = claims.Stage
Kind = prefect_api.FaultKind

STATES = "/flow_run_states/"


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
    scene.redis.hincrby(f"{keys.PREFIX}steady", "last", -int(seconds * 1000))


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
    impatient = recovery_memory.RecoveryMemory(scene.redis, patience_seconds=0, gap_seconds=10)
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
        recoverer.recover()
        scene.let_orphans_wait()
        return scene.prefect.requests["GET", STATES]

    assert [tick() for _ in range(4)] == [0, 1, 0, 0]
    scene.objects.force(theirs, S.RUNNING)
    assert [tick() for _ in range(3)] == [1, 0, 0]


def test_the_memory_of_foreign_runs_does_not_grow_without_end(scene: RecoveryScene) -> None:
    orphan(scene, worker_name="somebody else")
    search = scene.search()
    search._ours.update({uuid4(): False for _ in range(orphan_search.MAX_REMEMBERED)})
    recoverer = scene.recoverer(search=search)
    recoverer.recover()
    scene.let_orphans_wait()
    recoverer.recover()
    assert len(search._ours) == 1


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
