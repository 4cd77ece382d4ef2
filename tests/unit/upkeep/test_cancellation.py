"""Cancellation: who is told, what is killed, and what is reported, whoever holds the run."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from typing import Any
from uuid import UUID

import pytest
from redis import Redis

from dispatcher import errors, planning
from dispatcher.ledger import claims, locks, rounds
from dispatcher.prefect_api import client, schemas
from dispatcher.reporting import state_reporter
from dispatcher.testing import prefect_api
from dispatcher.upkeep import cancellation
from executors import errors as executor_errors
from tests.unit import parts

S = schemas.StateType
Kind = prefect_api.FaultKind

SET_STATE = "/flow_runs/{id}/set_state"
FILTER = "/flow_runs/filter"


class CancelScene(parts.Scene):
    """A scene with a cancel task, which notes what it revokes and kills."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.revoked: list[UUID] = []
        self.killed: list[tuple[UUID, str]] = []
        self.on_kill: Callable[[], object] = lambda: None

    def canceller(self, **options: Any) -> cancellation.Canceller:
        values: dict[str, Any] = {
            "api": self.api,
            "book": self.book,
            "mutex": locks.Locks(self.redis),
            "turns": rounds.Rounds(self.redis),
            "queues": lambda: {parts.POOL: ()},
            "reporter": state_reporter.Reporter(self.api),
            "revoke": self.revoked.append,
            "kill": self._kill,
        }
        return cancellation.Canceller(**values | options)

    def tick(self, **options: Any) -> int:
        return self.canceller(**options).cancel()

    def orphan(self, *, pid: str | None = parts.PID) -> UUID:
        """A run that is to be cancelled and has no claim."""
        run = self.objects.run(self.deployment)
        self.objects.force(run.id, S.RUNNING)
        if pid is not None:
            self.quiet_api.update_infrastructure_pid(run.id, pid)
        self.objects.force(run.id, S.CANCELLING)
        return run.id

    def _kill(self, run: schemas.FlowRun, pool: str) -> None:
        assert pool == parts.POOL
        self.killed.append((run.id, run.infrastructure_pid or ""))
        self.on_kill()


@pytest.fixture
def scene(
    prefect: prefect_api.FakePrefect, redis: Redis, caplog: pytest.LogCaptureFixture
) -> Iterator[CancelScene]:
    caplog.set_level(logging.INFO, logger="dispatcher")
    made = CancelScene(prefect, redis)
    yield made
    made.close()


def acquire(scene: CancelScene, claim: claims.NewClaim) -> claims.Lease | claims.Refusal:
    return scene.book.acquire(claim, owner="a")


def raising(error: Exception) -> Callable[[], object]:
    def kill() -> object:
        raise error

    return kill


def test_without_a_run_to_cancel_there_is_nothing_to_do(scene: CancelScene) -> None:
    scene.claim()
    assert scene.tick() == 0
    assert scene.revoked == []


# Claims


def test_a_run_whose_task_has_not_begun_is_cancelled_at_once(scene: CancelScene) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.CANCELLING)
    assert scene.tick() == 1
    assert scene.revoked == [claim.claim_id]
    assert scene.history(claim.flow_run_id)[-1] == "Cancelled"
    assert scene.last_message(claim.flow_run_id) == planning.CANCELLED_BEFORE_START.message
    assert scene.stage(claim.flow_run_id) is claims.Stage.CLOSED
    assert acquire(scene, claim) is claims.Refusal.CLOSED
    assert scene.tick() == 0


def test_the_holder_of_a_run_is_woken_once_and_reports_itself(scene: CancelScene) -> None:
    claim = scene.claim()
    assert isinstance(acquire(scene, claim), claims.Lease)
    scene.set_state(claim, S.RUNNING, S.CANCELLING)
    assert [scene.tick(), scene.tick(), scene.tick()] == [1, 1, 1]
    assert scene.revoked == [claim.claim_id]
    assert scene.killed == []
    assert scene.history(claim.flow_run_id)[-1] == "Cancelling"
    kept = scene.book.get(claim.flow_run_id)
    assert kept is not None
    assert kept.cancel_requested


def test_a_cancel_by_a_client_of_prefect_2_counts_as_well(scene: CancelScene) -> None:
    claim = scene.claim()
    scene.objects.force(claim.flow_run_id, S.CANCELLED, name="Cancelling")
    assert scene.tick() == 1
    assert scene.revoked == [claim.claim_id]
    assert scene.history(claim.flow_run_id)[-1] == "Cancelled"


def test_a_run_that_is_cancelled_while_it_is_claimed_is_never_started(scene: CancelScene) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.CANCELLING)
    barrier = threading.Barrier(2)
    answers: list[object] = []

    def deliver() -> None:
        barrier.wait(10)
        answers.append(scene.execute(claim))

    thread = threading.Thread(target=deliver)
    thread.start()
    barrier.wait(10)
    scene.tick()
    thread.join()
    scene.tick()
    assert not scene.script.began
    assert answers[0] in {"CANCELLED", "refused: closed"}
    assert scene.history(claim.flow_run_id)[-1] == "Cancelled"


def test_execution_and_cancellation_together_end_a_running_run(scene: CancelScene) -> None:
    claim = scene.claim()
    scene.script.blocks = True

    def be_cancelled() -> None:
        scene.set_state(claim, S.RUNNING, S.CANCELLING)
        assert scene.tick() == 1

    scene.script.during = be_cancelled
    assert scene.execute(claim) == "CANCELLED"
    assert scene.script.kills == [(parts.PID, parts.GRACE_SECONDS)]
    assert scene.history(claim.flow_run_id)[-1] == "Cancelled"
    assert scene.tick() == 0


# Runs that nobody holds


def test_a_run_that_nobody_holds_is_killed_by_its_pid(scene: CancelScene) -> None:
    run_id = scene.orphan()
    assert scene.tick() == 1
    assert scene.killed == [(run_id, parts.PID)]
    assert scene.revoked == []
    assert scene.last_message(run_id) == planning.CANCELLED.message


def test_a_run_without_a_claim_or_a_pid_is_reported_so(scene: CancelScene) -> None:
    run_id = scene.orphan(pid=None)
    scene.tick()
    assert scene.killed == []
    assert scene.history(run_id)[-1] == "Cancelled"
    assert "It has no infrastructure pid" in (scene.last_message(run_id) or "")


def test_a_claim_that_was_closed_earlier_is_not_taken_for_one_that_waited(
    scene: CancelScene,
) -> None:
    claim = scene.claim()
    scene.book.close(claim)
    scene.set_state(claim, S.CANCELLING)
    scene.tick()
    assert scene.revoked == []
    assert "It has no infrastructure pid" in (scene.last_message(claim.flow_run_id) or "")


def test_a_job_that_is_gone_is_reported_so(scene: CancelScene) -> None:
    run_id = scene.orphan()
    scene.on_kill = raising(executor_errors.InfrastructureNotFound("no process 7"))
    scene.tick()
    assert scene.history(run_id)[-1] == "Cancelled"
    assert "its job is gone: no process 7" in (scene.last_message(run_id) or "")


def test_a_run_whose_deployment_is_gone_is_reported_so(scene: CancelScene) -> None:
    run_id = scene.orphan()
    scene.on_kill = raising(errors.ObjectNotFound(detail="Deployment not found"))
    scene.tick()
    assert "its job is gone: Deployment not found" in (scene.last_message(run_id) or "")


@pytest.mark.parametrize(
    ("error", "words"),
    [
        # its job is on another machine
        (executor_errors.InfrastructureNotAvailable("it is on host-2"), "cannot be cancelled from"),
        # the executor has no means to stop jobs
        (NotImplementedError("no means"), "cannot be cancelled: no means"),
        # tried again at the next tick
        (errors.ApiUnreachable("no answer"), "could not be cancelled yet: no answer"),
        (executor_errors.ConfigurationError("no block"), "could not be cancelled yet: no block"),
        (OSError("strange"), "could not be cancelled yet"),
    ],
)
def test_a_run_that_could_not_be_stopped_is_not_reported_and_tried_again(
    scene: CancelScene, error: Exception, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    run_id = scene.orphan()
    scene.on_kill = raising(error)
    assert scene.tick() == 1
    assert scene.history(run_id)[-1] == "Cancelling"
    assert any(words in message for message in caplog.messages)
    scene.on_kill = lambda: None
    scene.tick()
    assert scene.history(run_id)[-1] == "Cancelled"
    assert len(scene.killed) == 2


def test_one_run_that_cannot_be_stopped_harms_no_other(scene: CancelScene) -> None:
    orphans = [scene.orphan(), scene.orphan()]

    def fail_once() -> None:
        if len(scene.killed) == 1:
            raise OSError

    scene.on_kill = fail_once
    scene.tick()
    assert sorted(scene.history(run_id)[-1] for run_id in orphans) == ["Cancelled", "Cancelling"]


def test_claims_are_served_before_any_kill_which_may_take_long(scene: CancelScene) -> None:
    waiting = [scene.claim() for _ in range(3)]
    scene.orphan()
    for claim in waiting:
        scene.set_state(claim, S.CANCELLING)
    seen: list[int] = []
    scene.on_kill = lambda: seen.append(len(scene.revoked))
    assert scene.tick() == 4
    assert seen == [3]


# States


def test_a_run_that_ended_meanwhile_keeps_its_state(scene: CancelScene) -> None:
    run_id = scene.orphan()
    scene.on_kill = lambda: scene.objects.force(run_id, S.COMPLETED)
    scene.tick()
    assert scene.history(run_id)[-1] == "Completed"


def test_a_run_that_was_deleted_meanwhile_is_no_error(scene: CancelScene) -> None:
    run_id = scene.orphan()
    scene.on_kill = lambda: scene.objects.delete_run(run_id)
    assert scene.tick() == 1
    assert scene.tick() == 0


def test_a_report_whose_answer_was_lost_is_made_once(scene: CancelScene) -> None:
    run_id = scene.orphan()
    scene.fail(Kind.REPLY_LOST, SET_STATE)
    scene.tick()
    assert scene.history(run_id).count("Cancelled") == 1


def test_an_api_that_is_away_leaves_the_rest_to_the_next_tick(scene: CancelScene) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.CANCELLING)
    scene.fail(Kind.REQUEST_LOST, SET_STATE, times=parts.FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.tick()
    # The claim is closed, so nothing starts; the state follows.
    assert acquire(scene, claim) is claims.Refusal.CLOSED
    scene.prefect.faults.clear()
    assert scene.tick() == 1
    assert scene.history(claim.flow_run_id)[-1] == "Cancelled"


# Which runs


def test_runs_of_other_pools_and_queues_are_left_alone(scene: CancelScene) -> None:
    scene.objects.pool("other", type="process")
    scene.objects.queue(parts.POOL, "mine")
    other_pool = scene.objects.run(scene.objects.deployment("other"))
    mine = scene.objects.run(scene.objects.deployment(parts.POOL, work_queue_name="mine"))
    other_queue = scene.objects.run(scene.deployment)
    for run in (other_pool, mine, other_queue):
        scene.objects.force(run.id, S.RUNNING)
        scene.objects.force(run.id, S.CANCELLING)
    assert scene.tick(queues=lambda: {parts.POOL: ("mine",)}) == 1
    assert scene.history(mine.id)[-1] == "Cancelled"
    assert scene.tick() == 1
    assert scene.history(other_queue.id)[-1] == "Cancelled"
    assert scene.history(other_pool.id)[-1] == "Cancelling"


def test_runs_beyond_the_first_page_are_found_too(scene: CancelScene) -> None:
    for _ in range(client.PAGE_LIMIT + 3):
        scene.orphan()
    scene.on_kill = raising(executor_errors.InfrastructureNotAvailable("elsewhere"))
    scene.prefect.requests.clear()
    assert scene.tick() == client.PAGE_LIMIT + 3
    assert len(scene.killed) == client.PAGE_LIMIT + 3
    # Those that are in no pool are looked for among all that are to be cancelled.
    assert scene.prefect.requests["POST", FILTER] == 2 + 2


def test_a_tick_beside_another_does_nothing(scene: CancelScene) -> None:
    run_id = scene.orphan()
    with locks.Locks(scene.redis).hold(cancellation.ROUND, lease_seconds=60) as held:
        assert held
        assert scene.tick() == 0
    assert scene.history(run_id)[-1] == "Cancelling"
    assert scene.tick() == 1


# Runs that are in no pool any more


def test_a_run_that_was_put_back_and_lost_its_pool_is_killed_by_its_pid(
    scene: CancelScene,
) -> None:
    claim = scene.claim()
    lease = acquire(scene, claim)
    assert isinstance(lease, claims.Lease)
    scene.quiet_api.update_infrastructure_pid(claim.flow_run_id, parts.PID)
    scene.book.close(claim, fence=lease.fence)
    scene.objects.delete_pool(parts.POOL)
    scene.set_state(claim, S.CANCELLING)

    assert scene.tick() == 1

    assert scene.killed == [(claim.flow_run_id, parts.PID)]
    assert scene.history(claim.flow_run_id)[-1] == "Cancelled"


def test_a_run_without_a_pool_that_was_never_ours_is_left_alone(scene: CancelScene) -> None:
    run_id = scene.orphan()
    scene.objects.delete_pool(parts.POOL)
    assert scene.tick() == 0
    assert scene.history(run_id)[-1] == "Cancelling"


def test_runs_without_a_pool_are_looked_for_now_and_then_or_when_somebody_says_so(
    scene: CancelScene,
) -> None:
    canceller = scene.canceller()

    def requests() -> int:
        before = scene.prefect.requests["POST", FILTER]
        canceller.cancel()
        return scene.prefect.requests["POST", FILTER] - before

    assert [requests() for _ in range(3)] == [2, 1, 1]
    canceller.hasten()
    assert requests() == 2


def test_a_server_with_many_runs_to_cancel_is_asked_less_often(scene: CancelScene) -> None:
    scene.objects.pool("other")
    elsewhere = scene.objects.deployment("other")
    for _ in range(client.PAGE_LIMIT + 1):
        run_id = scene.objects.run(elsewhere).id
        scene.objects.force(run_id, S.RUNNING)
        scene.objects.force(run_id, S.CANCELLING)
    scene.tick()
    name = cancellation.ADRIFT_ROUND
    left = scene.redis.pttl(rounds.Rounds(scene.redis)._key(name))
    assert left > 1000 * cancellation.ADRIFT_SECONDS
