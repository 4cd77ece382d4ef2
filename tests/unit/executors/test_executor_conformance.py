"""The conformance suite: on the process executor, on the documented one, and on wrong ones."""

from __future__ import annotations

import contextlib
import inspect
import re
import threading
import types
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar

import pytest

from dispatcher.testing import executors
from executors import base, process
from tests import waiting, warm

GUIDE = Path(__file__).parents[3] / "docs" / "executors.md"


def documented_module() -> types.ModuleType:
    """The module that the guide shows as an example."""
    [source] = re.findall(r"```python\n(from __future__.*?)```", GUIDE.read_text(), re.DOTALL)
    module = types.ModuleType("plain_executor")
    exec(compile(source, str(GUIDE), "exec"), module.__dict__)
    return module


class TestProcessExecutor(executors.ExecutorConformance):
    executor_class = process.ProcessExecutor


class TestWarmProcessExecutor(executors.ExecutorConformance):
    executor_class = process.ProcessExecutor
    impossible_job_variables: ClassVar[Mapping[str, Any]] = {"working_dir": "/no/such/directory"}

    @pytest.fixture
    def executor(self) -> Iterator[base.BaseExecutor]:
        with warm.servers() as servers:
            yield warm.CommandExecutor(servers.starts())


class TestDocumentedExecutor(executors.ExecutorConformance):
    executor_class = documented_module().PlainExecutor

    def test_registry_finds_it_under_its_type(self) -> None:
        pytest.skip("the guide's example is not installed")


# The suite itself: each of these executors has one fault, which one test must find.


class Faulty(process.ProcessExecutor):
    """Does everything right where its faults do not say otherwise."""

    type = "faulty"


class CallsStartedTwice(Faulty):
    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        def twice(identifier: str) -> None:
            started(identifier)
            started(identifier)

        return super().run(flow_run, configuration, twice)


class NeverCallsStarted(Faulty):
    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        return super().run(flow_run, configuration, lambda _: None)


class CallsStartedAtTheEnd(Faulty):
    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        result = super().run(flow_run, configuration, lambda _: None)
        started(result.identifier)
        return result


class HidesTheStatus(Faulty):
    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        result = super().run(flow_run, configuration, started)
        return base.ExecutorResult(result.identifier, 0)


class ForgetsTheEnvironment(Faulty):
    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        bare = configuration.model_copy(update={"env": {}})
        return super().run(flow_run, bare, started)


class StartsTheImpossible(Faulty):
    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        started("host:1")
        return super().run(flow_run, configuration, lambda _: None)


class RunsOneAtATime(Faulty):
    def __init__(self) -> None:
        super().__init__()
        self._one = threading.Lock()

    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        with self._one:
            return super().run(flow_run, configuration, started)


class IgnoresRefusals(Faulty):
    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        def ignore(identifier: str) -> None:
            with contextlib.suppress(Exception):
                started(identifier)

        return super().run(flow_run, configuration, ignore)


class KillsNothing(Faulty):
    def kill_infrastructure(self, *args: Any, **kwargs: Any) -> None:
        return


class UndeclaredConfiguration(process.ProcessJobConfiguration):
    colour: str = "red"


class UsesUndeclaredVariables(Faulty):
    job_configuration = UndeclaredConfiguration


class CannotKill(base.BaseExecutor):
    """Which its author has not said."""

    type = "faulty"
    job_configuration = process.ProcessJobConfiguration
    job_configuration_variables = process.ProcessVariables

    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        return process.ProcessExecutor().run(flow_run, configuration, started)


class FaultySuite(executors.ExecutorConformance):
    """Jobs that end by themselves soon after the suite has lost its patience."""

    timeout_seconds = 1.5

    def command_lasting(self, seconds: int) -> str:
        return "sleep 3"


@pytest.mark.parametrize(
    ("kind", "test", "complaint"),
    [
        (Faulty, "registry_finds_it_under_its_type", "no entry point 'faulty'"),
        (UsesUndeclaredVariables, "every_placeholder_of_the_template_has_a_variable", "colour"),
        (
            CallsStartedTwice,
            "started_is_called_once_with_the_pid_that_the_result_has",
            "called with",
        ),
        (
            NeverCallsStarted,
            "started_is_called_once_with_the_pid_that_the_result_has",
            "called with",
        ),
        (CallsStartedAtTheEnd, "started_is_called_while_the_job_lasts", "did not call started"),
        (HidesTheStatus, "exit_status_is_passed_on", "run() returned 0"),
        (ForgetsTheEnvironment, "job_knows_its_flow_run", "PREFECT__FLOW_RUN_ID"),
        (ForgetsTheEnvironment, "job_has_the_variables_of_its_configuration", "its env"),
        (StartsTheImpossible, "impossible_job_raises_before_started", "'host:1'"),
        (RunsOneAtATime, "two_jobs_at_once_are_separate", "did not return"),
        (IgnoresRefusals, "error_of_started_stops_the_job_and_is_passed_on", "DID NOT RAISE"),
        (KillsNothing, "killing_a_job_ends_its_run", "did not return"),
        (KillsNothing, "killing_a_job_that_is_gone_says_so", "DID NOT RAISE"),
        (CannotKill, "killing_a_job_ends_its_run", "cannot stop a job"),
    ],
)
def test_the_suite_finds(kind: type[base.BaseExecutor], test: str, complaint: str) -> None:
    suite = type("Suite", (FaultySuite,), {"executor_class": kind})()
    executor = suite.make_executor()
    jobs = executors.Jobs(suite, executor)
    method = getattr(suite, f"test_{test}")
    offered = {"executor": executor, "jobs": jobs, "status": 3}
    wanted = {name: offered[name] for name in inspect.signature(method).parameters}
    try:
        with pytest.raises(BaseException) as caught:
            method(**wanted)
        assert complaint in str(caught.value)
    finally:
        waiting.wait_for(
            lambda: all(job.has_ended for job in jobs.started), seconds=30, what="the jobs end"
        )
