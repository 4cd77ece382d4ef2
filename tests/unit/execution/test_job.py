"""One job by itself: when and how it is stopped, and whether it could be started again."""

from __future__ import annotations

import logging
import threading
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatcher import planning
from dispatcher.execution import job as jobs
from dispatcher.prefect_api import schemas
from dispatcher.preparation import job_preparation
from executors import errors
from tests.unit import parts

S = schemas.StateType
Stop = planning.StopReason

NOW = datetime(2030, 1, 1, tzinfo=UTC)


class Stage:
    """A job of a script, with what it told."""

    def __init__(
        self,
        script: parts.Script,
        *,
        infra_retries: int | None = None,
        due_in_seconds: float | None = None,
        **options: Any,
    ) -> None:
        self.started: list[str] = []
        values: dict[str, Any] = {
            "grace_seconds": parts.GRACE_SECONDS,
            "reschedule": False,
            "glance": lambda: None,
            "now": lambda: NOW,
        }
        self.job = jobs.Job(**values | options)
        self.prepared = job_preparation.Prepared(
            pool=schemas.WorkPool(id=UUID(int=1), name=parts.POOL, type=parts.TYPE),
            executor=script.executor()(),
            configuration=None,
            labels={},
            infra_retries=infra_retries,
        )
        self.flow_run = schemas.FlowRun(id=uuid4(), flow_id=uuid4(), state=_pending(due_in_seconds))

    def run(self) -> object:
        return self.job.run(self.flow_run, self.prepared, self.started.append)


def _pending(due_in_seconds: float | None) -> schemas.State | None:
    if due_in_seconds is None:
        return None
    due = NOW + timedelta(seconds=due_in_seconds)
    details = schemas.StateDetails(scheduled_time=due)
    return schemas.State(type=S.PENDING, name="Pending", state_details=details)


def killers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "job-killer"]


# Running


def test_a_job_that_nobody_stops_runs_to_its_end() -> None:
    script = parts.Script()
    stage = Stage(script)
    assert stage.run() is script.result
    assert stage.started == [parts.PID]
    assert (stage.job.identifier, stage.job.stop_reason) == (parts.PID, None)


def test_what_a_job_uses_is_known_while_it_is_there() -> None:
    stage = Stage(parts.Script(during=lambda: told.append(stage.job.memory_used())))
    told = [stage.job.memory_used()]

    stage.run()

    assert [*told, stage.job.memory_used()] == [None, parts.MEMORY, None]


def test_an_executor_that_fails_to_tell_what_a_job_uses_harms_nobody() -> None:
    def fail() -> int:
        raise ValueError("no idea")

    stage = Stage(parts.Script(memory=fail, during=lambda: told.append(stage.job.memory_used())))
    told: list[int | None] = []

    stage.run()

    assert told == [None]


def test_a_stop_before_the_job_exists_is_carried_out_as_soon_as_it_does() -> None:
    script = parts.Script(blocks=True)
    stage = Stage(script)
    script.before = lambda: stage.job.stop(Stop.CANCEL)
    stage.run()
    assert script.kills == [(parts.PID, parts.GRACE_SECONDS)]
    assert stage.started == [parts.PID]


def test_what_is_raised_when_it_has_started_passes_to_the_caller() -> None:
    stage = Stage(parts.Script())

    def fail(_identifier: str) -> None:
        raise LookupError

    with pytest.raises(LookupError):
        stage.job.run(stage.flow_run, stage.prepared, fail)
    stage.job.stop(Stop.CANCEL)  # it has ended


def test_a_job_that_has_ended_is_not_killed_any_more() -> None:
    script = parts.Script()
    stage = Stage(script)
    stage.run()
    stage.job.stop(Stop.CANCEL)
    assert script.kills == []


def test_the_end_of_a_job_waits_for_its_kill_to_return() -> None:
    script = parts.Script(blocks=True)
    stage = Stage(script)
    script.during = lambda: stage.job.stop(Stop.CANCEL)
    stage.run()
    assert killers() == []


# Reasons


def test_the_first_reason_to_stop_stays_but_for_a_lost_lease() -> None:
    job = Stage(parts.Script()).job
    assert job.stop_reason is None
    job.stop(Stop.CANCEL)
    job.stop(Stop.SHUTDOWN)
    job.stop(Stop.UNREACHABLE)
    assert job.stop_reason is Stop.CANCEL
    job.stop(Stop.LOST)
    job.stop(Stop.CANCEL)
    assert job.stop_reason is Stop.LOST


@pytest.mark.parametrize(
    ("reason", "grace_seconds"),
    [
        (Stop.CANCEL, parts.GRACE_SECONDS),
        # the run may be started again by somebody else at any moment
        (Stop.LOST, 0.0),
        (Stop.UNREACHABLE, 0.0),
    ],
)
def test_the_reason_decides_how_much_time_the_job_has_to_end(
    reason: Stop, grace_seconds: float
) -> None:
    script = parts.Script(blocks=True)
    stage = Stage(script)
    script.during = lambda: stage.job.stop(reason)
    stage.run()
    assert script.kills == [(parts.PID, grace_seconds)]
    assert script.interrupts == []


@pytest.mark.parametrize(
    ("setting", "infra_retries", "begun", "reschedule"),
    [
        # its flow has begun, and nobody allowed to execute it twice
        (False, None, True, False),
        # the setting, or the deployment, allows it
        (True, None, True, True),
        (False, 2, True, True),
        # nothing of it has been executed
        (False, None, False, True),
    ],
)
def test_a_job_that_stops_with_its_worker_is_interrupted_not_killed(
    *, setting: bool, infra_retries: int | None, begun: bool, reschedule: bool
) -> None:
    script = parts.Script(blocks=True, has_begun=begun)
    stage = Stage(script, infra_retries=infra_retries, reschedule=setting)
    script.during = lambda: stage.job.stop(Stop.SHUTDOWN)
    stage.run()
    assert script.interrupts == [(parts.PID, reschedule, parts.GRACE_SECONDS)]
    assert script.kills == []


@pytest.mark.parametrize(
    "cancelling",
    [schemas.State(type=S.CANCELLING), schemas.State(type=S.CANCELLED, name="Cancelling")],
)
def test_a_cancel_that_has_not_come_through_counts_more_than_the_end_of_the_worker(
    cancelling: schemas.State,
) -> None:
    script = parts.Script(blocks=True, has_begun=True)
    stage = Stage(script, glance=lambda: cancelling)
    script.during = lambda: stage.job.stop(Stop.SHUTDOWN)
    stage.run()
    assert stage.job.stop_reason is Stop.CANCEL
    assert script.kills == [(parts.PID, parts.GRACE_SECONDS)]
    assert script.interrupts == []


def test_an_engine_whose_run_has_ended_is_not_told_to_crash_it_when_its_worker_stops() -> None:
    script = parts.Script(blocks=True, has_begun=True)
    stage = Stage(script, glance=lambda: schemas.State(type=S.COMPLETED))
    script.during = lambda: stage.job.stop(Stop.SHUTDOWN)
    stage.run()
    assert stage.job.stop_reason is Stop.SHUTDOWN
    assert [reschedule for _, reschedule, _ in script.interrupts] == [True]


def test_a_lost_lease_counts_more_than_a_cancel_that_comes_to_light_when_its_worker_stops() -> None:
    script = parts.Script(blocks=True, has_begun=True)

    def glance() -> schemas.State:
        stage.job.stop(Stop.LOST)
        return schemas.State(type=S.CANCELLING)

    stage = Stage(script, glance=glance)
    script.during = lambda: stage.job.stop(Stop.SHUTDOWN)
    stage.run()
    assert stage.job.stop_reason is Stop.LOST
    assert script.kills == [(parts.PID, 0.0)]


def test_a_job_that_loses_its_lease_while_its_worker_stops_is_killed_at_once() -> None:
    script = parts.Script(blocks=True, interrupt_errors=[OSError("busy")])
    stage = Stage(script)

    def shut_down_then_lose() -> None:
        stage.job.stop(Stop.SHUTDOWN)
        while killers():
            threading.Event().wait(0.01)
        stage.job.stop(Stop.LOST)

    script.during = shut_down_then_lose
    stage.run()
    assert len(script.interrupts) == 1
    assert script.kills == [(parts.PID, 0.0)]


# Kills


def test_one_kill_at_a_time_is_under_way() -> None:
    script = parts.Script(blocks=True)
    slow = threading.Event()

    class SlowToKill(parts.ScriptedExecutor):
        def kill_infrastructure(self, *args: Any, **values: Any) -> None:
            slow.wait(parts.STUCK_SECONDS)
            super().kill_infrastructure(*args, **values)

    SlowToKill.script = script
    stage = Stage(script)
    prepared = job_preparation.Prepared(stage.prepared.pool, SlowToKill(), None, {}, None)

    def stop_often() -> None:
        for _ in range(5):
            stage.job.stop(Stop.CANCEL)
        slow.set()

    script.during = stop_often
    stage.job.run(stage.flow_run, prepared, stage.started.append)
    assert len(script.kills) == 1


@pytest.mark.parametrize(
    ("error", "level"),
    [
        (errors.InfrastructureNotFound("no process 7"), logging.DEBUG),
        (NotImplementedError("no means"), logging.ERROR),
        (errors.InfrastructureNotAvailable("not now"), logging.ERROR),
        (OSError("strange"), logging.ERROR),
    ],
)
def test_a_kill_that_fails_is_logged_and_can_be_tried_again(
    error: Exception, level: int, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG, logger=jobs.__name__)
    script = parts.Script(kill_errors=[error])
    stage = Stage(script)

    def stop_twice() -> None:
        stage.job.stop(Stop.CANCEL)
        while killers():
            threading.Event().wait(0.01)
        stage.job.stop(Stop.CANCEL)

    script.during = stop_twice
    stage.run()
    assert len(script.kills) == 2
    assert [record.levelno for record in caplog.records] == [level]


# Whether recovery could start the run again


@pytest.mark.parametrize(
    ("begun", "infra_retries", "due_in_seconds", "expected"),
    [
        # nothing of the flow has been executed
        (False, None, None, True),
        # it goes on through an outage
        (True, None, None, False),
        (True, None, -60, False),
        # its deployment allows to execute it again
        (True, 2, None, True),
        # its engine is there, and waits until the run is due
        (True, None, 60, True),
    ],
)
def test_a_job_may_be_restarted_until_its_flow_begins_or_if_it_opted_in(
    *,
    begun: bool,
    infra_retries: int | None,
    due_in_seconds: float | None,
    expected: bool,
) -> None:
    script = parts.Script(has_begun=begun)
    stage = Stage(script, infra_retries=infra_retries, due_in_seconds=due_in_seconds)
    seen: list[bool] = []
    script.before = lambda: seen.append(stage.job.may_be_restarted())
    script.during = lambda: seen.append(stage.job.may_be_restarted())
    assert stage.job.may_be_restarted()
    stage.run()
    assert seen == [True, expected]
