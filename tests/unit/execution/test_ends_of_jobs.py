"""How jobs end by themselves, and executors that fail."""

from __future__ import annotations

from uuid import uuid4

import pytest

from dispatcher import planning
from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas
from dispatcher.reporting import state_reporter
from executors import base
from executors import errors as executor_errors
from tests.unit import parts
from tests.unit.execution.execution_scene import RUN, assert_finished, ended, raising

S = schemas.StateType

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
        (
            [S.RUNNING, S.CANCELLING],
            ended(1),
            "CANCELLED",
            "cancelled. Flow run infrastructure exited",
        ),
        ([S.RUNNING, S.CANCELLING], ended(0), "CANCELLED", "its job had ended by itself before"),
        # a pause that its process was to wait for
        ([S.RUNNING, S.PAUSED], ended(0), "CRASHED", "left the run Paused"),
        # exit 0 without an end is as it should be here
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
    reporter = state_reporter.Reporter(scene.api)
    scene.prefect.requests.clear()
    assert reporter.conclude(uuid4(), planning.Ending(0, reported=S.FAILED)) == "FAILED"
    assert reporter.conclude(uuid4(), planning.NOT_STARTED) == "lost"
    assert scene.prefect.requests.total() == 0


def test_a_report_that_the_server_takes_back_is_told_by_the_state_it_has(
    scene: parts.Scene,
) -> None:
    claim = scene.claim()
    scene.set_state(claim, S.RUNNING, S.COMPLETED)
    said = state_reporter.Reporter(scene.api).report(claim.flow_run_id, planning.not_submitted("x"))
    assert said == "COMPLETED"
