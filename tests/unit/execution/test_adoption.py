"""Jobs that outlive their worker: another one follows them, and nothing is started again."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from redis import Redis

from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_api
from executors import base, errors
from tests.unit import parts
from tests.unit.upkeep import recovery_scene

S = schemas.StateType


@dataclass
class OutlivingScript(parts.Script):
    """A script for jobs of which one is found alive, or for which looking raises an error."""

    alive: str | None = parts.PID
    find_error: Exception | None = None
    adopted: list[str] = field(default_factory=list)
    released: list[str] = field(default_factory=list)

    def executor(self) -> type[base.BaseExecutor]:
        class Outliving(OutlivingExecutor):
            script = self

        return Outliving


class OutlivingExecutor(parts.ScriptedExecutor):
    script: OutlivingScript

    def find_infrastructure(self, flow_run: schemas.FlowRun, configuration: Any) -> str | None:
        if self.script.find_error is not None:
            raise self.script.find_error
        return self.script.alive

    def adopt(
        self, infrastructure_pid: str, configuration: Any, started: Callable[[str], None]
    ) -> base.ExecutorResult:
        self.script.adopted.append(infrastructure_pid)
        started(infrastructure_pid)
        self.script.during()
        if self.script.blocks:
            assert self.script.release.wait(parts.STUCK_SECONDS), "the job was not stopped"
        return self.script.result

    def release(self, infrastructure_pid: str) -> None:
        self.script.released.append(infrastructure_pid)
        self.script.release.set()


class Scene(recovery_scene.RecoveryScene):
    """A scene whose jobs outlive their workers."""

    script: OutlivingScript

    def handed_over(self, *states: S) -> claims.NewClaim:
        """The claim by which the job of a lost worker is to be adopted."""
        self.lost(*states)
        assert self.tick() == 1
        [claim] = self.published
        return claim


@pytest.fixture
def scene(prefect: prefect_api.FakePrefect, redis: Redis) -> Iterator[Scene]:
    made = Scene(prefect, redis, script=OutlivingScript())
    yield made
    made.close()


# What recovery does


@pytest.mark.parametrize("states", [[], [S.RUNNING]])
def test_a_job_that_lives_is_handed_over_and_its_run_is_left_alone(
    scene: Scene, states: list[S]
) -> None:
    claim = scene.handed_over(*states)
    kept = scene.kept(claim)
    assert kept.adopts
    assert kept.stage is claims.Stage.PENDING
    assert scene.last_state(claim.flow_run_id).type is (states or [S.PENDING])[-1]
    assert scene.script.kills == []


def test_a_job_that_is_gone_is_not_waited_for(scene: Scene) -> None:
    scene.script.alive = None
    claim = scene.lost(S.RUNNING)
    scene.tick()
    assert scene.published == []
    assert scene.last_state(claim.flow_run_id).type is S.CRASHED


@pytest.mark.parametrize("error", [errors.InfrastructureNotAvailable("no engine"), OSError()])
def test_a_job_that_cannot_be_looked_for_is_given_up(scene: Scene, error: Exception) -> None:
    scene.script.find_error = error
    claim = scene.lost(S.RUNNING)
    scene.tick()
    assert scene.last_state(claim.flow_run_id).type is S.CRASHED


def test_the_job_of_a_run_that_is_to_be_cancelled_is_killed_instead(scene: Scene) -> None:
    claim = scene.lost(S.RUNNING, S.CANCELLING)
    scene.tick()
    assert scene.published == []
    assert scene.last_state(claim.flow_run_id).type is S.CANCELLED


def test_a_lost_message_of_an_adoption_is_sent_again(scene: Scene) -> None:
    claim = scene.handed_over(S.RUNNING)
    scene.age(claim)
    scene.tick()
    assert scene.published == [claim, claim]


def test_a_second_adopter_that_is_lost_too_is_followed_by_a_third(scene: Scene) -> None:
    claim = scene.handed_over(S.RUNNING)
    assert isinstance(scene.book.acquire(claim, owner=f"{parts.WORKER}#2"), claims.Lease)
    scene.age(claim)
    scene.tick()
    assert len(scene.published) == 2
    assert scene.last_state(claim.flow_run_id).type is S.RUNNING


# What the execute task does


def test_an_adopted_job_is_followed_to_its_end_and_no_other_is_started(scene: Scene) -> None:
    claim = scene.handed_over(S.RUNNING)
    scene.script.during = lambda: scene.set_state(claim, S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"
    assert scene.script.adopted == [parts.PID]
    assert not scene.script.began
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending", "Running", "Completed"]
    assert scene.stage(claim.flow_run_id) is claims.Stage.CLOSED


def test_how_an_adopted_job_ended_is_told(scene: Scene) -> None:
    claim = scene.handed_over(S.RUNNING)
    scene.script.result = base.ExecutorResult(parts.PID, 137, explanation="Out of memory.")
    assert scene.execute(claim) == "CRASHED"
    assert "137. Out of memory." in (scene.last_message(claim.flow_run_id) or "")


def test_a_cancel_that_came_in_between_stops_the_adopted_job(scene: Scene) -> None:
    claim = scene.handed_over(S.RUNNING)
    lease = scene.book.acquire(claim, owner=f"{parts.WORKER}#2")
    assert isinstance(lease, claims.Lease)
    scene.cancel(claim)
    scene.age(claim)
    scene.script.blocks = True
    adoption = claims.NewClaim(claim.flow_run_id, claims.new_adoption())
    assert scene.book.close(claim, fence=lease.fence)
    scene.book.open([adoption], pool=parts.POOL, transition_id=adoption.claim_id, slots=1000)
    assert scene.book.accept(adoption)
    scene.script.during = lambda: scene.book.request_cancel(claim.flow_run_id)
    assert scene.execute(adoption) == "CANCELLED"
    assert scene.script.kills == [(parts.PID, parts.GRACE_SECONDS)]


def test_a_job_that_ended_before_it_was_adopted_is_told_to_be_lost(scene: Scene) -> None:
    claim = scene.handed_over(S.RUNNING)
    scene.script.alive = None
    assert scene.execute(claim) == "CRASHED"
    assert "its worker was lost, and it is gone" in (scene.last_message(claim.flow_run_id) or "")


def test_a_run_that_is_over_needs_no_adopter(scene: Scene) -> None:
    claim = scene.handed_over(S.RUNNING)
    scene.set_state(claim, S.COMPLETED)
    scene.execute(claim)
    assert scene.script.adopted == []
    assert scene.history(claim.flow_run_id)[-1] == "Completed"


def test_a_holder_that_comes_back_leaves_the_job_to_its_adopter(scene: Scene) -> None:
    claim = scene.claim()
    scene.script.blocks = True

    def take_over() -> None:
        scene.set_state(claim, S.RUNNING)
        held = scene.kept(claim)
        assert scene.book.close(claim, fence=held.fence)
        adoption = claims.NewClaim(claim.flow_run_id, claims.new_adoption())
        scene.book.open([adoption], pool=parts.POOL, transition_id=adoption.claim_id, slots=1000)
        assert isinstance(scene.book.acquire(adoption, owner="another#1"), claims.Lease)

    scene.script.during = take_over
    assert scene.execute(claim) == "lost"
    assert scene.script.released == [parts.PID]
    assert scene.script.kills == []
    assert scene.last_state(claim.flow_run_id).type is S.RUNNING
    assert scene.stage(claim.flow_run_id) is claims.Stage.HELD
