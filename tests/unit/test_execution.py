"""Execution: every way in which a job can end, be stopped, or not even begin."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis, RedisError

from dispatcher import claims, errors, ledger, planning, reporting, wakeups
from dispatcher.api import schemas
from dispatcher.testing import prefect_api
from executors import base, configuration
from executors import errors as executor_errors
from tests import valkey, waiting
from tests.unit import parts

S = schemas.StateType
Kind = prefect_api.FaultKind
Stop = planning.StopReason

RUN = "/flow_runs/{id}"
SET_STATE = "/flow_runs/{id}/set_state"
LEASE_SECONDS = 1.0
READ_DEPLOYMENT = "GET /deployments/{id}"  # while a job is being prepared


@pytest.fixture
def scene(
    prefect: prefect_api.FakePrefect, redis: Redis, caplog: pytest.LogCaptureFixture
) -> Iterator[parts.Scene]:
    caplog.set_level(logging.INFO, logger="dispatcher")
    made = parts.Scene(prefect, redis)
    yield made
    made.close()


def ended(status_code: int, **values: Any) -> base.ExecutorResult:
    return base.ExecutorResult(parts.PID, status_code, **values)


def raising(error: Exception) -> Callable[[], object]:
    def step() -> object:
        raise error

    return step


def assert_finished(scene: parts.Scene, claim: claims.NewClaim) -> None:
    assert scene.stage(claim.flow_run_id) is claims.Stage.CLOSED
    assert scene.nudged == [parts.POOL]


# Jobs that end by themselves


def test_a_run_that_completes_is_left_as_its_engine_left_it(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.during = lambda: scene.set_state(claim, S.RUNNING, S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending", "Running", "Completed"]
    assert_finished(scene, claim)


@pytest.mark.parametrize(
    ("states", "result", "outcome", "message"),
    [
        # the process is gone, its run is not over
        ([S.RUNNING], ended(0), "CRASHED", "exited with status code 0 but left the run Running"),
        ([], ended(0), "CRASHED", "exited with status code 0 but left the run Pending"),
        ([S.RUNNING], ended(-9), "CRASHED", "exited with non-zero status code -9."),
        (
            [S.RUNNING],
            ended(137, explanation="Out of memory?"),
            "CRASHED",
            "non-zero status code 137. Out of memory?",
        ),
        ([], ended(1), "CRASHED", "exited with non-zero status code 1."),
        # Crashed may be proposed all the same: the server keeps what is final
        ([S.RUNNING, S.COMPLETED], ended(1), "COMPLETED", None),
        ([S.RUNNING, S.FAILED], ended(-15), "FAILED", None),
        # a cancel that came too late to stop the job
        ([S.RUNNING, S.CANCELLING], ended(1), "CANCELLED", "was cancelled and its job has been"),
        ([S.RUNNING, S.CANCELLING], ended(0), "CANCELLED", "was cancelled and its job has been"),
        # exit 0 without an end is as it should be here
        ([S.RUNNING, S.PAUSED], ended(0), "PAUSED", None),
        ([S.RUNNING, S.FAILED], ended(0), "FAILED", None),
        # the engine said itself how it left the run
        ([S.RUNNING, S.COMPLETED], ended(0, reported_state=S.COMPLETED), "COMPLETED", None),
        ([S.RUNNING, S.FAILED], ended(1, reported_state=S.FAILED), "FAILED", None),
    ],
)
def test_the_end_of_a_job_decides_what_becomes_of_its_run(
    *,
    scene: parts.Scene,
    states: list[S],
    result: base.ExecutorResult,
    outcome: str,
    message: str | None,
) -> None:
    claim = scene.claim()
    scene.script.during = lambda: scene.set_state(claim, *states)
    scene.script.result = result
    assert scene.execute(claim) == outcome
    assert scene.prefect.states(claim.flow_run_id)[-1].type == outcome
    if message is not None:
        assert message in (scene.last_message(claim.flow_run_id) or "")
    assert_finished(scene, claim)


def test_a_retry_that_died_in_its_process_is_crashed(scene: parts.Scene) -> None:
    claim = scene.claim(empirical_policy={"retries": 3})

    def fail() -> None:
        scene.set_state(claim, S.RUNNING)
        failed = schemas.StateProposal(type=S.FAILED)
        scene.quiet_api.set_flow_run_state(claim.flow_run_id, failed)

    scene.script.during = fail
    assert scene.execute(claim) == "CRASHED"
    assert scene.history(claim.flow_run_id)[-2:] == ["AwaitingRetry", "Crashed"]


def test_a_run_costs_few_requests(scene: parts.Scene) -> None:
    executing = scene.execution()
    first, second = scene.claim(), scene.claim()
    executing.execute(first, worker=parts.WORKER)  # fills the catalog
    scene.prefect.requests.clear()
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    executing.execute(second, worker=parts.WORKER)
    assert scene.prefect.requests == {("GET", RUN): 1, ("PATCH", RUN): 1}


def test_a_job_gets_its_configuration_and_the_run_its_pid(scene: parts.Scene) -> None:
    claim = scene.claim(job_variables={"env": {"A": "1"}})
    scene.execute(claim)
    (configuration,) = scene.script.configurations
    assert configuration.env["A"] == "1"
    assert configuration.env["PREFECT__FLOW_RUN_ID"] == str(claim.flow_run_id)
    assert configuration.env["PREFECT__WORKER_NAME"] == "fleet"
    assert configuration.labels["prefect.io/work-pool-name"] == parts.POOL
    run = scene.quiet_api.read_flow_run(claim.flow_run_id)
    assert run.infrastructure_pid == parts.PID


def test_the_poller_is_nudged_when_the_slot_is_free_not_before(scene: parts.Scene) -> None:
    claim = scene.claim()
    seen: list[object] = []
    scene.execute(claim, nudge=lambda _: seen.append(scene.stage(claim.flow_run_id)))
    assert seen == [claims.Stage.CLOSED]


# Executors that fail


@pytest.mark.parametrize("error", [executor_errors.LaunchError("no such image"), OSError("pty")])
def test_a_job_that_could_not_be_started_is_reported(
    scene: parts.Scene, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.claim()
    scene.script.before = raising(error)
    assert scene.execute(claim) == "CRASHED"
    words = f"could not be submitted to infrastructure: {type(error).__name__}: {error}"
    assert words in (scene.last_message(claim.flow_run_id) or "")
    # What the executor meant is a line in the log, what it did not mean has a traceback.
    tracebacks = [record for record in caplog.records if record.exc_info]
    assert bool(tracebacks) == isinstance(error, OSError)
    assert_finished(scene, claim)


def test_an_executor_that_loses_its_job_is_reported(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.during = raising(OSError("no route to the cluster"))
    assert scene.execute(claim) == "CRASHED"
    assert "Lost track of the flow run's infrastructure: OSError: no route to the cluster" in (
        scene.last_message(claim.flow_run_id) or ""
    )
    assert_finished(scene, claim)


def test_an_executor_that_loses_its_job_while_it_is_cancelled_ends_as_cancelled(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()

    def lose() -> None:
        scene.set_state(claim, S.CANCELLING)
        raise OSError

    scene.script.during = lose
    assert scene.execute(claim) == "CANCELLED"


def test_an_executor_that_never_tells_a_pid_is_put_up_with(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.pid = None
    scene.script.during = lambda: scene.set_state(claim, S.RUNNING, S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"
    assert scene.quiet_api.read_flow_run(claim.flow_run_id).infrastructure_pid is None
    assert_finished(scene, claim)


# Jobs that cannot be prepared


def test_a_run_whose_deployment_is_gone_is_cancelled(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.objects.delete_deployment(scene.deployment.id)
    assert scene.execute(claim) == "CANCELLED"
    assert f"Deployment {scene.deployment.id} no longer exists" in (
        scene.last_message(claim.flow_run_id) or ""
    )
    assert not scene.script.began
    assert_finished(scene, claim)


@pytest.mark.parametrize(
    ("job_variables", "message"),
    [
        # the run's own variables do not fit
        ({"env": ["A"]}, "could not be submitted"),
        ({"env": {"A": "{{ prefect.blocks.secret.none }}"}}, "could not be submitted"),
    ],
)
def test_a_run_with_bad_job_variables_says_so_and_harms_no_other(
    scene: parts.Scene, job_variables: dict[str, Any], message: str
) -> None:
    bad, good = scene.claim(job_variables=job_variables), scene.claim()
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    executing = scene.execution()
    assert executing.execute(bad, worker=parts.WORKER) == "CRASHED"
    assert message in (scene.last_message(bad.flow_run_id) or "")
    assert executing.execute(good, worker=parts.WORKER) == "COMPLETED"
    assert len(scene.script.configurations) == 1


def test_a_pool_that_has_no_template_yet_gives_jobs_the_default_one(scene: parts.Scene) -> None:
    claim = scene.claim(job_variables={"env": {"A": "1"}})
    scene.objects.change_pool(parts.POOL, base_job_template={})
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"
    assert scene.script.configurations[0].env["A"] == "1"


def test_blocks_and_variables_are_read_where_the_job_is_prepared(scene: parts.Scene) -> None:
    scene.objects.variable("region", "north")
    block = scene.objects.block({"token": "s3cret"})
    slug = f"{block.block_type_slug}.{block.name}"
    claim = scene.claim(
        job_variables={
            "env": {
                "REGION": "{{ prefect.variables.region }}",
                "TOKEN": f"{{{{ prefect.blocks.{slug}.token }}}}",
            }
        }
    )
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"
    env = scene.script.configurations[0].env
    assert (env["REGION"], env["TOKEN"]) == ("north", "s3cret")


class Faulty(configuration.BaseJobConfiguration):
    """The configuration of a stranger's executor."""

    def prepare_for_flow_run(self, *_: Any, **__: Any) -> None:
        raise LookupError("s3cret")


def test_a_fault_in_a_strangers_executor_crashes_the_run_not_the_task(
    scene: parts.Scene, caplog: pytest.LogCaptureFixture
) -> None:
    claim = scene.claim()
    scene.script.job_configuration = Faulty
    assert scene.execute(claim) == "CRASHED"
    message = scene.last_message(claim.flow_run_id) or ""
    assert message.endswith(
        "could not be submitted to infrastructure: LookupError, see the worker's log"
    )
    assert [record for record in caplog.records if record.exc_info]
    assert_finished(scene, claim)


def test_a_pool_that_was_deleted_crashes_the_run(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.objects.delete_pool(parts.POOL)
    assert scene.execute(claim) == "CRASHED"
    assert 'Work pool "pool" not found' in (scene.last_message(claim.flow_run_id) or "")


def test_a_pool_whose_type_has_no_executor_crashes_the_run(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.objects.delete_pool(parts.POOL)
    scene.objects.pool(parts.POOL, type="nomad")
    assert scene.execute(claim) == "CRASHED"
    assert "no executor is installed for work pools of type 'nomad'" in (
        scene.last_message(claim.flow_run_id) or ""
    )


def test_a_run_without_a_deployment_is_executed(scene: parts.Scene) -> None:
    run = scene.objects.run_without_deployment(work_pool_name=parts.POOL)
    claim = scene.claim(run=run)
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    assert scene.execute(claim) == "COMPLETED"


# Runs that are not to be started


def assert_not_started(scene: parts.Scene, claim: claims.NewClaim) -> None:
    assert not scene.script.began
    assert_finished(scene, claim)


def test_a_run_that_was_cancelled_before_its_start_is_not_started(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.CANCELLING)
    assert scene.execute(claim) == "CANCELLED"
    assert scene.last_message(claim.flow_run_id) == planning.CANCELLED_BEFORE_START.message
    assert_not_started(scene, claim)


@pytest.mark.parametrize("state_type", [S.RUNNING, S.CANCELLED, S.COMPLETED, S.SCHEDULED])
def test_a_run_that_is_not_pending_any_more_is_dropped_without_a_word(
    scene: parts.Scene, state_type: S
) -> None:
    claim = scene.claim()
    scene.objects.force(claim.flow_run_id, state_type)
    before = scene.history(claim.flow_run_id)
    assert scene.execute(claim) == "lost"
    assert scene.history(claim.flow_run_id) == before
    assert_not_started(scene, claim)


def test_a_run_that_is_pending_by_another_workers_claim_is_dropped(scene: parts.Scene) -> None:
    claim = scene.claim()
    theirs = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=uuid4())
    scene.quiet_api.set_flow_run_state(claim.flow_run_id, theirs, force=True)
    assert scene.execute(claim) == "lost"
    assert_not_started(scene, claim)


def test_a_run_that_was_deleted_is_not_started(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.objects.delete_run(claim.flow_run_id)
    assert scene.execute(claim) == "lost"
    assert_not_started(scene, claim)


def test_a_cancel_while_the_job_is_prepared_keeps_it_from_starting(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.hooks[READ_DEPLOYMENT] = lambda: scene.cancel(claim)
    assert scene.execute(claim) == "CANCELLED"
    assert scene.last_message(claim.flow_run_id) == planning.CANCELLED_BEFORE_START.message
    assert_not_started(scene, claim)


def test_a_lease_that_is_lost_while_the_job_is_prepared_keeps_it_from_starting(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.hooks[READ_DEPLOYMENT] = lambda: scene.supersede(claim)
    assert scene.execute(claim) == "lost"
    assert not scene.script.began
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]


def test_without_the_ledger_nothing_is_started(
    scene: parts.Scene, valkey_server: valkey.ValkeyServer
) -> None:
    # Somebody else may have the lease by now, and there is no way to know.
    impatient = valkey_server.client(timeout_seconds=0.1)
    claim = scene.claim()
    scene.hooks[READ_DEPLOYMENT] = valkey_server.pause
    try:
        with pytest.raises(RedisError):
            scene.execute(claim, book=ledger.RedisLedger(impatient))
    finally:
        valkey_server.resume()
        impatient.close()
    assert not scene.script.began
    assert scene.history(claim.flow_run_id) == ["Scheduled", "Pending"]
    assert scene.stage(claim.flow_run_id) is claims.Stage.HELD


# Deliveries


def test_a_second_delivery_beside_the_first_is_refused_and_writes_nothing(
    scene: parts.Scene,
) -> None:
    claim, answers = scene.claim(), []
    scene.script.result = ended(0, reported_state=S.COMPLETED)

    def deliver_again() -> None:
        scene.prefect.requests.clear()
        answers.append(scene.execute(claim))
        assert scene.prefect.requests.total() == 0

    scene.script.during = deliver_again
    assert scene.execute(claim) == "COMPLETED"
    assert answers == ["refused: held"]
    assert len(scene.script.configurations) == 1
    assert scene.nudged == [parts.POOL]


def test_a_second_delivery_after_the_first_is_refused_and_writes_nothing(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.execute(claim)
    scene.prefect.requests.clear()
    assert scene.execute(claim) == "refused: closed"
    assert scene.prefect.requests.total() == 0


@pytest.mark.parametrize("known_run", [True, False])
def test_a_message_that_no_claim_knows_is_refused(scene: parts.Scene, known_run: bool) -> None:
    claim = scene.claim()
    run_id = claim.flow_run_id if known_run else uuid4()
    stranger = claims.NewClaim(run_id, uuid4())
    assert scene.execute(stranger) == ("refused: superseded" if known_run else "refused: missing")
    assert scene.stage(claim.flow_run_id) is claims.Stage.PENDING


def test_of_many_deliveries_at_once_one_starts_the_job(scene: parts.Scene) -> None:
    claim, executing = scene.claim(), scene.execution()
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    with futures.ThreadPoolExecutor(6) as pool:
        outcomes = list(pool.map(lambda _: executing.execute(claim, worker=parts.WORKER), range(6)))
    assert outcomes.count("COMPLETED") == 1
    assert len(scene.script.configurations) == 1


def test_runs_are_executed_beside_each_other(scene: parts.Scene) -> None:
    made, executing = [scene.claim() for _ in range(4)], scene.execution()
    together = threading.Barrier(4)
    scene.script.during = lambda: together.wait(parts.STUCK_SECONDS)
    scene.script.result = ended(0, reported_state=S.COMPLETED)
    with futures.ThreadPoolExecutor(4) as pool:
        outcomes = pool.map(lambda claim: executing.execute(claim, worker=parts.WORKER), made)
        assert list(outcomes) == ["COMPLETED"] * 4


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
    before = signal.getsignal(wakeups.WAKE_SIGNAL)
    scene.wakes.install()
    claim = scene.claim()
    scene.script.blocks = True

    def be_cancelled() -> None:
        scene.cancel(claim)
        os.kill(os.getpid(), wakeups.WAKE_SIGNAL)

    scene.script.during = be_cancelled
    started = time.monotonic()
    try:
        # A lease so long that renewals alone would take 2 s to hear of it.
        assert scene.execute(claim, lease_seconds=3600.0) == "CANCELLED"
    finally:
        signal.signal(wakeups.WAKE_SIGNAL, before)
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
    outcome = reporting.Reporter(api).report(claim.flow_run_id, planning.not_submitted("x"))
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
    said = scene.execute(claim, book=ledger.RedisLedger(impatient), lease_seconds=1.0)
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
    said = scene.execute(claim, book=ledger.RedisLedger(impatient), lease_seconds=1.0)
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
    said = scene.execute(claim, book=ledger.RedisLedger(impatient), lease_seconds=1.0)
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
    said = scene.execute(claim, book=ledger.RedisLedger(impatient), lease_seconds=1.0)
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
    said = scene.execute(claim, book=ledger.RedisLedger(impatient), lease_seconds=LEASE_SECONDS)
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
            scene.execute(claim, book=ledger.RedisLedger(impatient), lease_seconds=1.0)
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


# What else is told


def test_a_job_is_told_of_by_events_and_labels(scene: parts.Scene) -> None:
    claim = scene.claim()
    scene.script.blocks = True
    scene.script.during = lambda: scene.cancel(claim)
    scene.execute(claim)
    assert [event.event for event in scene.emitted] == [
        "prefect.worker.submitted-flow-run",
        "prefect.worker.cancelled-flow-run",
        "prefect.worker.executed-flow-run",
    ]
    (labelled,) = scene.labelled
    assert labelled.flow_run_id == claim.flow_run_id
    assert labelled.labels["prefect.worker.name"] == parts.WORKER_NAME
    assert labelled.labels["prefect.work-pool.name"] == parts.POOL


# Reporting by itself


def test_what_the_engine_told_is_said_without_asking(scene: parts.Scene) -> None:
    reporter = reporting.Reporter(scene.api)
    scene.prefect.requests.clear()
    assert reporter.conclude(uuid4(), planning.Ending(0, reported=S.FAILED)) == "FAILED"
    assert reporter.conclude(uuid4(), planning.NOT_STARTED) == "lost"
    assert scene.prefect.requests.total() == 0


def test_a_report_that_the_server_takes_back_is_told_by_the_state_it_has(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.RUNNING, S.COMPLETED)
    said = reporting.Reporter(scene.api).report(claim.flow_run_id, planning.not_submitted("x"))
    assert said == "COMPLETED"
