"""Runs whose tasks a user revokes through Celery."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from redis import Redis

from dispatcher.ledger import claims, locks
from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_api
from dispatcher.upkeep import revoked_runs
from tests.unit import parts

S = schemas.StateType


class RevokeScene(parts.Scene):
    """A scene with somebody who revokes."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.hastened: list[str] = []

    def revoke(self, *claimed: claims.NewClaim, running: bool = False) -> int:
        made = revoked_runs.RevokedRuns(
            api=self.api,
            book=self.book,
            mutex=locks.Locks(self.redis),
            hasten=self.hastened.append,
        )
        return made.cancel({claim.claim_id for claim in claimed}, running=running)

    def hold(self) -> claims.NewClaim:
        """A run that is executed."""
        claim = self.claim()
        assert isinstance(self.book.acquire(claim, owner="a"), claims.Lease)
        self.set_state(claim, S.RUNNING)
        self.quiet_api.update_infrastructure_pid(claim.flow_run_id, parts.PID)
        return claim


@pytest.fixture
def scene(prefect: prefect_api.FakePrefect, redis: Redis) -> Iterator[RevokeScene]:
    made = RevokeScene(prefect, redis)
    yield made
    made.close()


def test_a_run_that_is_executed_is_cancelled_if_its_task_is_terminated(scene: RevokeScene) -> None:
    claim, other = scene.hold(), scene.hold()
    assert scene.revoke(claim, running=True) == 1
    assert scene.history(claim.flow_run_id)[-1] == "Cancelling"
    assert scene.last_message(claim.flow_run_id) == "Cancelled through Celery."
    assert scene.history(other.flow_run_id)[-1] == "Running"
    assert scene.hastened == [parts.POOL]


def test_a_run_that_is_executed_goes_on_if_its_task_is_only_revoked(scene: RevokeScene) -> None:
    claim = scene.hold()
    assert scene.revoke(claim) == 0
    assert scene.history(claim.flow_run_id)[-1] == "Running"


def test_a_run_whose_message_waits_is_cancelled_by_a_mere_revoke(scene: RevokeScene) -> None:
    claim = scene.claim()
    assert scene.revoke(claim) == 1
    assert scene.history(claim.flow_run_id)[-1] == "Cancelling"
    assert scene.hastened == [parts.POOL]


def test_what_every_worker_hears_one_of_them_does(scene: RevokeScene) -> None:
    claim = scene.hold()
    name = f"revoke:{claim.claim_id}"
    with locks.Locks(scene.redis).hold(name, lease_seconds=10.0):
        assert scene.revoke(claim, running=True) == 0
    assert scene.history(claim.flow_run_id)[-1] == "Running"


def test_a_run_that_was_deleted_is_nobodys_business(scene: RevokeScene) -> None:
    claim = scene.hold()
    scene.objects.delete_run(claim.flow_run_id)
    assert scene.revoke(claim, running=True) == 0
    assert scene.hastened == []
