"""What the tests of executing a claim share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispatcher.ledger import claims
from executors import base
from tests.unit import parts

RUN = "/flow_runs/{id}"


READ_DEPLOYMENT = "GET /deployments/{id}"  # while a job is being prepared


def ended(status_code: int, **values: Any) -> base.ExecutorResult:
    return base.ExecutorResult(parts.PID, status_code, **values)


def raising(error: Exception) -> Callable[[], object]:
    def step() -> object:
        raise error

    return step


def assert_finished(scene: parts.Scene, claim: claims.NewClaim) -> None:
    assert scene.stage(claim.flow_run_id) is claims.Stage.CLOSED
    assert scene.nudged == [parts.POOL]


def assert_not_started(scene: parts.Scene, claim: claims.NewClaim) -> None:
    assert not scene.script.began
    assert_finished(scene, claim)
