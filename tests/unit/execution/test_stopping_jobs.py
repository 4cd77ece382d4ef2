"""Jobs that are stopped: by a cancel, a lost lease, the end of the worker."""

from __future__ import annotations

import logging
import os
import signal
import time
from collections.abc import Iterator
from typing import Any

import pytest

from dispatcher.execution import wake_signals
from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas
from executors import errors as executor_errors
from tests import waiting
from tests.unit import parts
from tests.unit.execution.execution_scene import (
    READ_DEPLOYMENT,
    assert_finished,
    assert_not_started,
    ended,
)

S = schemas.StateType

# Stopping


def test_a_run_that_is_cancelled_while_it_runs_is_stopped_and_reported(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.blocks = True

    def be_cancelled() -> None:
        scene.set_state(claim, S.RUNNING)
        assert scene.cancel(claim) is claims.CancelResult.MARKED

    scene.script.during = be_cancelled
    scene.script.result = ended(-9)
    assert scene.execute(claim) == "CANCELLED"
    assert scene.script.kills == [(parts.PID, parts.GRACE_SECONDS)]
    assert scene.history(claim.flow_run_id)[-2:] == ["Cancelling", "Cancelled"]
    assert_finished(scene, claim)


def test_a_run_that_ends_as_cancelled_by_itself_is_left_so(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.blocks = True
    scene.script.during = lambda: scene.cancel(claim)
    scene.script.result = ended(0, reported_state=S.CANCELLED)
    assert scene.execute(claim) == "CANCELLED"
    assert scene.history(claim.flow_run_id)[-1] == "Cancelling"  # the engine's own word counts


def test_an_engine_that_wrote_crashed_over_a_cancel_is_put_right(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.blocks = True
    scene.script.during = lambda: (
        scene.cancel(claim),
        scene.objects.force(claim.flow_run_id, S.CRASHED),
    )
    scene.script.result = ended(-15)
    assert scene.execute(claim) == "CANCELLED"
    assert scene.history(claim.flow_run_id)[-3:] == ["Cancelling", "Crashed", "Cancelled"]


def test_a_cancel_while_the_job_starts_is_carried_out_once_it_is_there(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.before = lambda: scene.cancel(claim)
    scene.script.blocks = True
    scene.script.result = ended(-15)
    assert scene.execute(claim) == "CANCELLED"
    assert scene.script.kills == [(parts.PID, parts.GRACE_SECONDS)]


def test_a_wake_signal_makes_a_cancel_quick(scene: parts.Scene) -> None:
    before = signal.getsignal(wake_signals.WAKE_SIGNAL)
    scene.wakes.install()
    claim = scene.claim()
    scene.script.blocks = True

    def be_cancelled() -> None:
        scene.cancel(claim)
        os.kill(os.getpid(), wake_signals.WAKE_SIGNAL)

    scene.script.during = be_cancelled
    started = time.monotonic()
    try:
        # A lease so long that renewals alone would take 2 s to hear of it.
        assert scene.execute(claim, lease_seconds=3600.0) == "CANCELLED"
    finally:
        signal.signal(wake_signals.WAKE_SIGNAL, before)
    assert time.monotonic() - started < 1.5


def test_a_holder_whose_lease_was_taken_stops_its_job_and_writes_nothing(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    later: list[claims.NewClaim] = []
    scene.script.blocks = True
    scene.script.during = lambda: later.append(scene.supersede(claim))
    scene.script.result = ended(-9)
    before = scene.history(claim.flow_run_id)
    assert scene.execute(claim) == "lost"
    assert scene.script.kills == [(parts.PID, 0.0)]  # the run may have been started again
    assert scene.history(claim.flow_run_id) == before
    kept = scene.book.get(claim.flow_run_id)
    assert kept is not None
    assert (kept.claim_id, kept.stage) == (later[0].claim_id, claims.Stage.HELD)


def test_a_holder_whose_lease_was_taken_writes_nothing_when_its_executor_fails_either(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()

    def be_superseded() -> None:
        scene.supersede(claim)
        waiting.wait_for(lambda: scene.script.kills, seconds=10, what="the job is stopped")
        raise OSError("the job went away")

    scene.script.during = be_superseded
    before = scene.history(claim.flow_run_id)
    assert scene.execute(claim) == "lost"
    assert scene.history(claim.flow_run_id) == before


def test_a_holder_that_was_to_cancel_and_lost_its_lease_writes_nothing(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.kill_errors = [OSError("try again")] * 1000

    def be_cancelled_then_superseded() -> None:
        scene.cancel(claim)
        waiting.wait_for(lambda: scene.script.kills, seconds=10, what="the job is to be stopped")
        scene.supersede(claim)
        seen = len(scene.script.kills)
        # One attempt may still be for the cancel.
        waiting.wait_for(lambda: len(scene.script.kills) > seen + 1, seconds=10, what="the loss")
        scene.script.kill_errors.clear()

    scene.script.blocks = True
    scene.script.during = be_cancelled_then_superseded
    assert scene.execute(claim) == "lost"
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending", "Cancelling"]


def test_a_kill_that_failed_is_tried_again(
    scene: parts.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.claim()
    scene.script.kill_errors = [
        OSError("the cluster is busy"),
        executor_errors.InfrastructureNotAvailable("not reachable now"),
    ]
    scene.script.blocks = True
    scene.script.during = lambda: scene.cancel(claim)
    assert scene.execute(claim) == "CANCELLED"
    assert len(scene.script.kills) == 3
    message = f"job {parts.PID} could not be stopped yet"
    assert caplog.messages.count(message) == 2


def test_an_executor_that_cannot_kill_lets_the_job_end_by_itself(
    scene: parts.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.claim()
    scene.script.kill_errors = [NotImplementedError("no means to stop jobs")] * 1000

    def go_on() -> None:
        scene.cancel(claim)
        waiting.wait_for(lambda: len(scene.script.kills) > 1, seconds=10, what="two attempts")

    scene.script.during = go_on
    assert scene.execute(claim) == "CANCELLED"
    assert f"job {parts.PID} goes on: no means to stop jobs" in caplog.messages


def test_a_job_that_is_gone_when_it_is_to_be_stopped_is_no_error(
    scene: parts.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.claim()
    scene.script.kill_errors = [executor_errors.InfrastructureNotFound("no process")]

    def end_meanwhile() -> None:
        scene.cancel(claim)
        waiting.wait_for(lambda: scene.script.kills, seconds=10, what="the kill")

    scene.script.during = end_meanwhile
    assert scene.execute(claim) == "CANCELLED"
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


# The worker stops


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


@pytest.fixture
def ignored_sigterm() -> Iterator[None]:
    """What is delivered in the end does not end the tests."""
    before = signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("ignored_sigterm")
@pytest.mark.parametrize(
    ("states", "begun", "options", "outcome", "reschedule"),
    [
        # its flow has begun
        ([S.RUNNING], True, {}, "CRASHED", False),
        # the same, but the setting allows to execute it again
        ([S.RUNNING], True, {"reschedule_on_shutdown": True}, "put back", True),
        # nothing of it has been executed
        ([], False, {}, "put back", True),
    ],
)
def test_a_worker_that_does_not_wait_stops_its_job_and_says_what_becomes_of_the_run(
    *,
    scene: parts.Scene,
    states: list[S],
    begun: bool,
    options: dict[str, Any],
    outcome: str,
    reschedule: bool,
) -> None:
    claim = scene.claim()
    scene.script.blocks, scene.script.has_begun = True, begun
    scene.script.result = ended(-15)

    def be_told_to_stop() -> None:
        scene.set_state(claim, *states)
        terminate()

    scene.script.during = be_told_to_stop
    assert scene.execute(claim, **options) == outcome
    assert scene.script.interrupts == [(parts.PID, reschedule, parts.GRACE_SECONDS)]
    assert scene.script.kills == []
    assert "Its worker was told to stop" in (scene.last_message(claim.flow_run_id) or "")
    assert_finished(scene, claim)


@pytest.mark.usefixtures("ignored_sigterm")
def test_a_run_whose_job_was_not_there_yet_is_put_back_when_its_worker_stops(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.hooks[READ_DEPLOYMENT] = terminate
    assert scene.execute(claim) == "put back"
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending", "AwaitingRetry"]
    assert_not_started(scene, claim)


@pytest.mark.usefixtures("ignored_sigterm")
def test_a_run_that_moves_on_while_it_is_put_back_stays_as_it_is(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.hooks[READ_DEPLOYMENT] = terminate
    scene.hooks["POST /flow_runs/bulk_set_state"] = lambda: scene.set_state(claim, S.RUNNING)
    assert scene.execute(claim) == "moved on"
    assert scene.history(claim.flow_run_id)[-1] == "Running"
