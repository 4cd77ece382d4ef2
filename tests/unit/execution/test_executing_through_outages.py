"""Executing while the Prefect API or the ledger is away."""

from __future__ import annotations

import threading
import time

import pytest
from redis import RedisError

from dispatcher import errors, planning
from dispatcher.ledger import claims, redis_ledger
from dispatcher.prefect_api import schemas
from dispatcher.reporting import state_reporter
from dispatcher.testing import prefect_api
from tests import valkey, waiting
from tests.unit import parts
from tests.unit.execution.execution_scene import RUN, assert_finished, ended, raising

S = schemas.StateType
Kind = prefect_api.FaultKind

SET_STATE = "/flow_runs/{id}/set_state"


LEASE_SECONDS = 1.0


# The Prefect API away


def test_a_pid_that_cannot_be_noted_does_not_stop_the_run(
    scene: parts.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.claim()
    scene.fail(Kind.REFUSED, RUN, method="PATCH", status=500)
    scene.script.during = lambda: scene.set_state(claim, S.RUNNING, S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"
    assert any("infrastructure pid not noted" in message for message in caplog.messages)


def test_an_api_that_is_away_at_the_start_leaves_the_claim_to_recovery(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.fail(Kind.REQUEST_LOST, RUN, times=parts.FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.execute(claim)
    assert not scene.script.began
    assert scene.stage(claim.flow_run_id) is claims.Stage.HELD
    assert scene.nudged == []


def test_an_api_that_is_away_while_the_job_is_prepared_leaves_the_claim_to_recovery(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.fail(Kind.REQUEST_LOST, "/deployments/{id}", times=parts.FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.execute(claim)
    assert not scene.script.began
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]


def test_an_api_that_is_away_at_the_end_leaves_the_outcome_to_recovery(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.result = ended(1)
    scene.fail(Kind.REQUEST_LOST, SET_STATE, times=parts.FOR_GOOD)
    assert scene.execute(claim) == "to be reported"
    kept = scene.book.get(claim.flow_run_id)
    assert kept is not None
    assert kept.stage is claims.Stage.FINISHED
    assert planning.outcome_from_text(kept.outcome) == planning.Ending(status_code=1)
    assert scene.book.open_run_ids() == set()
    assert scene.nudged == [parts.POOL]


@pytest.mark.parametrize("status_code", [0, 1])
def test_a_run_that_is_deleted_while_it_runs_has_nothing_to_report(
    scene: parts.Scene, status_code: int
) -> None:
    claim = scene.claim()
    scene.script.during = lambda: scene.objects.delete_run(claim.flow_run_id)
    scene.script.result = ended(status_code)
    assert scene.execute(claim) == "deleted"
    assert_finished(scene, claim)


def test_a_report_whose_answer_was_lost_is_made_once(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.result = ended(1)
    scene.fail(Kind.REPLY_LOST, SET_STATE)
    assert scene.execute(claim) == "CRASHED"
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending", "Crashed"]


def test_a_run_that_is_deleted_between_two_proposals_ends_as_it_was_last_seen(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.CANCELLING)

    requests: list[str] = []

    def on_request(method: str, route: str) -> None:
        requests.append(route)
        if requests.count(SET_STATE) == 2:
            scene.objects.delete_run(claim.flow_run_id)

    api = scene.prefect.client(on_request=on_request)
    outcome = state_reporter.Reporter(api).report(claim.flow_run_id, planning.not_submitted("x"))
    assert outcome == S.CANCELLING
    api.transport.close()


def test_the_owner_of_a_lease_differs_from_delivery_to_delivery(scene: parts.Scene) -> None:
    # Or a duplicate would be taken for a repetition.
    first, second = scene.claim(), scene.claim()
    owners: list[str] = []

    def note_owner(claim: claims.NewClaim) -> None:
        kept = scene.book.get(claim.flow_run_id)
        assert kept is not None
        owners.append(kept.owner)

    scene.script.during = lambda: note_owner(first)
    scene.execute(first)
    scene.script.during = lambda: note_owner(second)
    scene.execute(second)
    assert len(set(owners)) == 2
    assert all(owner.startswith(f"{parts.WORKER}#") for owner in owners)


# The ledger away while the job runs


@pytest.mark.parametrize("begun", [True, False])
def test_a_job_outlives_its_lease_only_if_nobody_would_start_its_run_again(
    scene: parts.Scene, valkey_server: valkey.ValkeyServer, begun: bool
) -> None:
    impatient = valkey_server.client(timeout_seconds=0.1)
    claim = scene.claim()
    scene.script.has_begun = begun
    scene.script.result = ended(0, reported_state=S.COMPLETED)

    def outlive() -> None:
        if begun:
            scene.set_state(claim, S.RUNNING)
        valkey_server.pause()
        try:
            killed = threading.Event()
            deadline = time.monotonic() + (2.5 if begun else parts.STUCK_SECONDS)
            while not scene.script.kills and time.monotonic() < deadline:
                killed.wait(0.05)
        finally:
            valkey_server.resume()

    scene.script.during = outlive
    said = scene.execute(claim, book=redis_ledger.RedisLedger(impatient), lease_seconds=1.0)
    impatient.close()
    assert scene.script.kills == ([] if begun else [(parts.PID, 0.0)])
    assert said == "COMPLETED"


def until_killed(scene: parts.Scene, valkey_server: valkey.ValkeyServer) -> None:
    """The ledger hangs until the holder has stopped its job for that."""
    valkey_server.pause()
    waiting.wait_for(lambda: scene.script.kills, seconds=10, what="the job is stopped")


def test_a_holder_that_stopped_its_job_puts_the_run_back_once_the_ledger_is_there_again(
    scene: parts.Scene, valkey_server: valkey.ValkeyServer
) -> None:
    impatient = valkey_server.client(timeout_seconds=0.1)
    claim = scene.claim()
    scene.script.result = ended(-9)

    def be_cut_off() -> None:
        try:
            until_killed(scene, valkey_server)
        finally:
            valkey_server.resume()

    scene.script.during = be_cut_off
    said = scene.execute(claim, book=redis_ledger.RedisLedger(impatient), lease_seconds=1.0)
    impatient.close()
    assert said == "put back"
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending", "AwaitingRetry"]
    assert "could not renew its lease" in (scene.last_message(claim.flow_run_id) or "")
    assert_finished(scene, claim)


def test_a_holder_that_stopped_a_flow_which_had_begun_leaves_it_to_recovery(
    scene: parts.Scene, valkey_server: valkey.ValkeyServer
) -> None:
    impatient = valkey_server.client(timeout_seconds=0.1)
    claim = scene.claim(job_variables={"infra_retries": 1})
    scene.script.result = ended(-9)

    def begin_and_be_cut_off() -> None:
        scene.set_state(claim, S.RUNNING)
        try:
            until_killed(scene, valkey_server)
        finally:
            valkey_server.resume()

    scene.script.during = begin_and_be_cut_off
    said = scene.execute(claim, book=redis_ledger.RedisLedger(impatient), lease_seconds=1.0)
    impatient.close()
    assert said == "left to recovery"
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending", "Running"]
    assert scene.stage(claim.flow_run_id) is claims.Stage.HELD


def test_a_holder_that_stopped_its_job_leaves_the_run_to_whoever_has_it_by_now(
    scene: parts.Scene, valkey_server: valkey.ValkeyServer
) -> None:
    impatient = valkey_server.client(timeout_seconds=0.1)
    claim = scene.claim()
    scene.script.result = ended(-9)

    def be_cut_off_and_superseded() -> None:
        try:
            until_killed(scene, valkey_server)
        finally:
            valkey_server.resume()
        scene.supersede(claim)

    scene.script.during = be_cut_off_and_superseded
    said = scene.execute(claim, book=redis_ledger.RedisLedger(impatient), lease_seconds=1.0)
    impatient.close()
    assert said == "lost"
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]
    assert scene.stage(claim.flow_run_id) is claims.Stage.HELD


def test_a_holder_whose_job_ends_when_its_lease_is_over_leaves_the_run_to_whoever_has_it_by_now(
    scene: parts.Scene, valkey_server: valkey.ValkeyServer
) -> None:
    impatient = valkey_server.client(timeout_seconds=0.1)
    claim = scene.claim()
    scene.script.has_begun = True  # so that nobody stops the job over its lease
    scene.script.result = ended(-9)

    def be_paused_and_superseded() -> None:
        valkey_server.pause()
        try:
            threading.Event().wait(LEASE_SECONDS)
        finally:
            valkey_server.resume()
        scene.supersede(claim)

    scene.script.during = be_paused_and_superseded
    said = scene.execute(
        claim, book=redis_ledger.RedisLedger(impatient), lease_seconds=LEASE_SECONDS
    )
    impatient.close()
    assert said == "lost"
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]
    assert scene.stage(claim.flow_run_id) is claims.Stage.HELD


def test_a_holder_that_stopped_its_job_leaves_the_claim_to_recovery_while_the_ledger_is_away(
    scene: parts.Scene, valkey_server: valkey.ValkeyServer
) -> None:
    impatient = valkey_server.client(timeout_seconds=0.1)
    claim = scene.claim()
    scene.script.result = ended(-9)
    scene.script.during = lambda: until_killed(scene, valkey_server)
    try:
        with pytest.raises(RedisError):
            scene.execute(claim, book=redis_ledger.RedisLedger(impatient), lease_seconds=1.0)
    finally:
        valkey_server.resume()
    impatient.close()
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]
    assert scene.stage(claim.flow_run_id) is claims.Stage.HELD


def test_a_flushed_ledger_has_its_claim_back_before_the_job_ends(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.result = ended(0, reported_state=S.COMPLETED)

    def lose_the_ledger() -> None:
        scene.redis.flushall()
        waiting.wait_for(
            lambda: scene.stage(claim.flow_run_id) is claims.Stage.HELD,
            seconds=10,
            what="the claim is back",
        )

    scene.script.during = lose_the_ledger
    assert scene.execute(claim) == "COMPLETED"
    assert_finished(scene, claim)


def test_a_nudge_that_cannot_be_given_is_no_failure(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    assert scene.execute(claim, nudge=lambda _: raising(RedisError())()) == "COMPLETED"
    assert scene.stage(claim.flow_run_id) is claims.Stage.CLOSED
