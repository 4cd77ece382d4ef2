"""When the fleet says that its slots are held by runs that wait for runs without a slot."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta

import pytest

from dispatcher.ledger import claims, fleet, rounds
from dispatcher.prefect_api import schemas
from dispatcher.upkeep import slot_watch
from tests.unit import parts
from tests.unit.upkeep.recovery_scene import RecoveryScene

S = schemas.StateType
LONG_DUE = datetime.now(UTC) - timedelta(hours=1)


class Watched:
    """A fleet of two slots, and looks at it that need not wait for each other."""

    def __init__(self, scene: RecoveryScene) -> None:
        self.scene = scene
        self.fleet = fleet.Fleet(scene.redis)
        self.fleet.report(fleet.Node("w@h", 1, slots=2, serves_control=True, version="1"))
        self.turns = rounds.Rounds(scene.redis)
        self.watch = slot_watch.SlotWatch(
            api=scene.api,
            book=scene.book,
            workers=self.fleet,
            turns=self.turns,
            pools=lambda: [parts.POOL],
        )

    def parent(self) -> tuple[claims.NewClaim, schemas.FlowRun]:
        """A run with a slot, and its child without one."""
        claim = self.scene.claim()
        parent = self.scene.quiet_api.read_flow_run(claim.flow_run_id)
        child = self.scene.objects.child_run(parent, self.scene.deployment)
        due = LONG_DUE.isoformat()
        self.scene.objects.force(child.id, S.SCHEDULED, scheduled_time=due)
        return claim, child

    def look(self) -> None:
        self.turns.hasten(slot_watch.LOOK)
        self.watch.look()


@pytest.fixture
def watched(scene: RecoveryScene, caplog: pytest.LogCaptureFixture) -> Watched:
    caplog.set_level(logging.WARNING, logger=slot_watch.__name__)
    return Watched(scene)


def test_a_standstill_is_told_once(watched: Watched, caplog: pytest.LogCaptureFixture) -> None:
    for _ in range(2):
        watched.parent()
    for _ in range(3):
        watched.look()
    assert len(caplog.messages) == 1
    assert "every slot (2) is held by a run whose child runs are due" in caplog.messages[0]


def test_one_that_comes_again_is_told_again(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    _, (_, child) = watched.parent(), watched.parent()
    watched.look()
    watched.scene.objects.force(child.id, S.RUNNING)
    watched.look()
    watched.scene.objects.force(child.id, S.SCHEDULED, scheduled_time=LONG_DUE.isoformat())
    watched.look()
    assert len(caplog.messages) == 2


def test_a_fleet_that_can_go_on_says_nothing(
    watched: Watched, caplog: pytest.LogCaptureFixture
) -> None:
    watched.look()
    watched.parent()
    watched.look()  # a slot is free
    watched.scene.claim()
    watched.look()  # one run has no children
    assert caplog.messages == []


def test_it_looks_now_and_then_only(watched: Watched) -> None:
    for _ in range(2):
        watched.parent()
    before = watched.scene.prefect.requests["POST", "/flow_runs/filter"]
    for _ in range(5):
        watched.watch.look()
    assert watched.scene.prefect.requests["POST", "/flow_runs/filter"] - before == 2
