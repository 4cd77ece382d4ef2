"""One look of recovery: what it costs, what it survives, whose runs it judges."""

from __future__ import annotations

from concurrent import futures
from typing import Any
from uuid import uuid4

import pytest
from redis import RedisError
from redis.exceptions import ConnectionError as RedisConnectionError

from dispatcher import errors, planning
from dispatcher.ledger import claims, locks, redis_ledger
from dispatcher.prefect_api import schemas
from dispatcher.preparation import job_preparation
from dispatcher.testing import prefect_api
from dispatcher.upkeep import recovery
from tests import valkey
from tests.unit import parts
from tests.unit.upkeep.recovery_scene import (
    BULK,
    RUN,
    SET_STATE,
    RecoveryScene,
    assert_put_back,
    orphan,
)

S = schemas.StateType
Stage = claims.Stage
Kind = prefect_api.FaultKind

FILTER = "/flow_runs/filter"


# Ticks


def test_a_tick_beside_another_does_nothing(scene: RecoveryScene) -> None:
    claim = scene.lost()
    with locks.Locks(scene.redis).hold(recovery.ROUND, lease_seconds=60) as held:
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
                book=redis_ledger.RedisLedger(impatient),
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
    prepare: job_preparation.Preparation = scene.preparation()
    run = scene.objects.run_without_deployment(work_pool_name=parts.POOL)
    assert prepare.infra_retries(run) is None
