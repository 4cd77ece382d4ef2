"""What a job's holder believes about its flow: whether it has begun, and who may start it again."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from dispatcher import planning
from dispatcher.execution import job
from dispatcher.prefect_api import schemas
from dispatcher.preparation import job_preparation
from executors import base, configuration

S = schemas.StateType

NOW = datetime(2025, 1, 1, tzinfo=UTC)
PID = "host:1"


class Executor(base.BaseExecutor):
    """Runs one job, which does ``during``; the flow has begun if the test says so."""

    type = "scripted"
    job_configuration = configuration.BaseJobConfiguration

    def __init__(self, during: Callable[[], None], *, begun: bool) -> None:
        self._during = during
        self._begun = begun
        self.reschedule: list[bool] = []

    def run(
        self, flow_run: schemas.FlowRun, configuration: Any, started: Callable[[str], None]
    ) -> base.ExecutorResult:
        started(PID)
        self._during()
        return base.ExecutorResult(PID, 0)

    def has_begun(self, infrastructure_pid: str) -> bool:
        return self._begun

    def interrupt_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: Any,
        *,
        reschedule: bool,
        grace_seconds: float = base.GRACE_SECONDS,
    ) -> None:
        self.reschedule.append(reschedule)


class Trial:
    """One job on its way, and what can be asked of it meanwhile."""

    def __init__(
        self,
        *,
        begun: bool = False,
        states: tuple[S, ...] = (),
        due_in: float = -60.0,
        infra_retries: int | None = None,
    ) -> None:
        answers = list(states)
        self.job = job.Job(
            grace_seconds=1.0,
            reschedule=False,
            glance=lambda: schemas.State(type=answers.pop(0)) if answers else None,
            now=lambda: NOW,
        )
        self._due = NOW + timedelta(seconds=due_in)
        self._begun = begun
        self._infra_retries = infra_retries

    def ask(self, question: Callable[[], None]) -> Executor:
        """Ask while the job runs."""
        executor = Executor(question, begun=self._begun)
        pool = schemas.WorkPool(id=uuid4(), name="pool", type="scripted")
        details = schemas.StateDetails(scheduled_time=self._due)
        state = schemas.State(type=schemas.StateType.PENDING, state_details=details)
        run = schemas.FlowRun(id=uuid4(), flow_id=uuid4(), state=state)
        prepared = job_preparation.Prepared(
            pool=pool,
            executor=executor,
            configuration=None,
            labels={},
            infra_retries=self._infra_retries,
        )
        self.job.run(run, prepared, lambda _pid: None)
        return executor

    def may_be_restarted(self) -> bool:
        found: list[bool] = []
        self.ask(lambda: found.append(self.job.may_be_restarted()))
        return found[0]


def test_a_flow_that_has_begun_is_not_started_again_elsewhere() -> None:
    assert not Trial(begun=True).may_be_restarted()


def test_a_flow_that_has_not_begun_may_be_started_elsewhere() -> None:
    assert Trial(begun=False).may_be_restarted()


def test_a_flow_whose_deployment_opted_in_may_be_started_again_elsewhere() -> None:
    assert Trial(begun=True, infra_retries=1).may_be_restarted()


def test_an_engine_that_waits_for_its_runs_time_has_not_begun() -> None:
    assert Trial(begun=True, states=(S.RUNNING,), due_in=60.0).may_be_restarted()


def test_where_the_executor_cannot_tell_prefect_is_asked() -> None:
    assert not Trial(begun=False, states=(S.RUNNING,)).may_be_restarted()


def test_what_prefect_said_once_is_remembered() -> None:
    trial = Trial(begun=False, states=(S.PENDING, S.RUNNING, S.PENDING))
    found: list[bool] = []

    trial.ask(lambda: found.extend(trial.job.may_be_restarted() for _ in range(3)))

    assert found == [True, False, False]


@pytest.mark.parametrize(
    ("values", "reschedule"),
    [
        ({"begun": True}, False),
        ({"begun": False}, True),
        ({"begun": True, "due_in": 60.0}, True),
        ({"begun": True, "infra_retries": 1}, True),
    ],
)
def test_at_a_shutdown_what_has_not_begun_is_left_to_be_started_again(
    values: dict[str, Any], reschedule: bool
) -> None:
    trial = Trial(**values)

    executor = trial.ask(lambda: trial.job.stop(planning.StopReason.SHUTDOWN))

    assert executor.reschedule == [reschedule]
