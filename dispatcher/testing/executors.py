"""What every executor must do, as tests for its author to run with pytest.

Subclass :class:`ExecutorConformance` under a name that pytest collects, and say what differs::

    from dispatcher.testing import executors


    class TestMyExecutor(executors.ExecutorConformance):
        executor_class = MyExecutor
        job_variables = {"image": "busybox"}

The tests start real jobs and need the infrastructure that the executor runs them on.
"""

from __future__ import annotations

import contextlib
import json
import shlex
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

import executors
from dispatcher.prefect_api import schemas
from dispatcher.testing import running_job
from executors import base, configuration, errors, templates

LONG_SECONDS = 300  # a job that is to be stopped would last that long


class NoReferences:
    """A reader for templates that refer to no block and no variable: it has none."""

    def read_block_document(self, type_slug: str, name: str) -> schemas.BlockDocument | None:  # noqa: ARG002
        """There is none."""
        return None

    def read_block_document_by_id(self, block_document_id: str) -> schemas.BlockDocument | None:  # noqa: ARG002
        """There is none."""
        return None

    def read_variable(self, name: str) -> Any:  # noqa: ARG002
        """There is none."""
        return templates.MISSING


class ExecutorConformance:
    """The tests. Set ``executor_class``; the rest fits infrastructure with a POSIX shell.

    ``job_variables`` are those that a job needs besides ``command``. ``impossible_job_variables``
    are such that no job can be started with them. ``can_kill`` is false for an executor without
    the means to stop jobs. No single step may take longer than ``timeout_seconds``.
    """

    executor_class: ClassVar[type[base.BaseExecutor]]
    job_variables: ClassVar[Mapping[str, Any]] = {}
    impossible_job_variables: ClassVar[Mapping[str, Any]] = {"command": "./no-such-program"}
    can_kill: ClassVar[bool] = True
    timeout_seconds: ClassVar[float] = 30.0

    # What an author may override

    def make_executor(self) -> base.BaseExecutor:
        """Return a new executor; the dispatcher makes one without arguments as well."""
        return self.executor_class()

    def command_exiting(self, status: int) -> str:
        """Return the command of a job that ends at once with an exit status."""
        return f"sh -c 'exit {status}'"

    def command_lasting(self, seconds: int) -> str:
        """Return the command of a job that ends with 0 after some seconds."""
        return f"sleep {seconds}"

    def command_ignoring_sigterm(self, seconds: int) -> str:
        """Return the command of a job that lasts, whatever it is politely asked to do."""
        return f"""sh -c 'trap "" TERM; sleep {seconds}'"""

    def command_comparing(self, name: str, value: str) -> str:
        """Return the command of a job that ends with 0 if a variable has a value, else with 1."""
        return shlex.join(["sh", "-c", f'test "${name}" = {shlex.quote(value)}'])

    # What the tests start from

    @pytest.fixture
    def executor(self) -> base.BaseExecutor:
        """The executor under test."""
        return self.make_executor()

    @pytest.fixture
    def jobs(self, executor: base.BaseExecutor) -> Iterator[Jobs]:
        """Starts jobs and leaves none behind."""
        started = Jobs(self, executor)
        yield started
        started.close()

    def configure(self, **variables: Any) -> configuration.BaseJobConfiguration:
        """Return what the default template makes of job variables, prepared for a run."""
        return self.prepare(new_flow_run(), **variables)

    def prepare(
        self, flow_run: schemas.FlowRun, **variables: Any
    ) -> configuration.BaseJobConfiguration:
        """Return what the default template makes of job variables, prepared for this run."""
        made = self.executor_class.job_configuration.from_template_and_values(
            self.executor_class.get_default_base_job_template(),
            {**self.job_variables, **variables},
            NoReferences(),
        )
        made.prepare_for_flow_run(flow_run)
        return made

    # Registered, with a template

    def test_registry_finds_it_under_its_type(self) -> None:
        """The entry point has the name of the type, and the module can be imported."""
        kind = self.executor_class.type
        found = executors.get_executor_class_from_type(kind)
        assert found is self.executor_class, (
            f"no entry point {kind!r} of the group {executors.ENTRY_POINT_GROUP!r} leads to "
            f"{self.executor_class.__name__}; found {found}"
        )

    def test_default_template_has_both_parts(self) -> None:
        """A Prefect server refuses a template without either."""
        template = self.executor_class.get_default_base_job_template()
        parts = {"job_configuration", "variables"}
        assert set(template) >= parts, f"the template lacks {parts - set(template)}"
        assert "properties" in template["variables"], "the variables are no JSON schema"

    def test_every_placeholder_of_the_template_has_a_variable(self) -> None:
        """A Prefect server refuses a template that uses a variable it does not declare."""
        template = self.executor_class.get_default_base_job_template()
        used = {
            placeholder.name.partition(".")[0].partition("[")[0]
            for placeholder in templates.find_placeholders(template["job_configuration"])
            if placeholder.kind is templates.PlaceholderKind.VALUE
            and not placeholder.name.startswith("ctx.")
        }
        missing = used - set(template["variables"]["properties"])
        assert not missing, f"placeholders without a variable: {sorted(missing)}"

    def test_template_survives_the_way_to_the_server_and_back(self) -> None:
        """It is JSON, and makes the same configuration afterwards."""
        template = self.executor_class.get_default_base_job_template()
        returned = json.loads(json.dumps(template))
        assert returned == template, "the template is not the same after JSON"
        values = {**self.job_variables, "command": self.command_exiting(0)}
        kind = self.executor_class.job_configuration
        there, back = (
            kind.from_template_and_values(each, values, NoReferences())
            for each in (template, returned)
        )
        assert there == back, "the returned template makes another configuration"
        assert back.command == self.command_exiting(0), "the template does not use 'command'"

    def test_unset_job_variables_leave_a_command_that_runs_the_flow(self) -> None:
        """A deployment without job variables of its own must do."""
        assert self.configure().command, "the configuration has no command"

    # Running

    def test_started_is_called_once_with_the_pid_that_the_result_has(self, jobs: Jobs) -> None:
        """The pid is what the job can be stopped by after a restart of the worker."""
        job = jobs.start(self.command_exiting(0))
        result = job.wait_ended()
        assert len(job.identifiers) == 1, f"started() was called with {job.identifiers}"
        assert job.identifiers[0], "started() got an empty infrastructure pid"
        assert result.identifier == job.identifiers[0], "the result names another job"

    def test_started_is_called_while_the_job_lasts(self, jobs: Jobs) -> None:
        """A pid that comes only afterwards is of no use."""
        job = jobs.start(self.command_lasting(LONG_SECONDS if self.can_kill else 5))
        job.wait_started()
        assert not job.has_ended, "run() returned before its job had ended"

    @pytest.mark.parametrize("status", [0, 3])
    def test_exit_status_is_passed_on(self, jobs: Jobs, status: int) -> None:
        """Any but 0 makes the run Crashed."""
        found = jobs.start(self.command_exiting(status)).wait_ended().status_code
        assert found == status, f"the job exited with {status}, run() returned {found}"

    def test_job_knows_its_flow_run(self, jobs: Jobs) -> None:
        """Prefect's engine reads from the environment which run it executes."""
        flow_run = new_flow_run()
        command = self.command_comparing("PREFECT__FLOW_RUN_ID", str(flow_run.id))
        job = jobs.start(command, flow_run)
        assert job.wait_ended().status_code == 0, "the job lacks PREFECT__FLOW_RUN_ID"

    def test_job_has_the_variables_of_its_configuration(self, jobs: Jobs) -> None:
        """They include values that a shell would take apart."""
        value = "two words; $HOME 'quoted'"
        command = self.command_comparing("CONFORMANCE", value)
        job = jobs.start(command, env={"CONFORMANCE": value})
        assert job.wait_ended().status_code == 0, "the job lacks a variable of its env"

    def test_variable_that_is_null_is_not_inherited(
        self, jobs: Jobs, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Null in ``env`` keeps the worker's own variable of that name out of the job."""
        monkeypatch.setenv("CONFORMANCE", "the worker's")
        job = jobs.start(self.command_comparing("CONFORMANCE", ""), env={"CONFORMANCE": None})
        assert job.wait_ended().status_code == 0, "the job inherited what its env leaves out"

    def test_impossible_job_raises_before_started(self, jobs: Jobs) -> None:
        """Then the run's page says why; an ExecutorError's text is for its readers."""
        job = jobs.start(**{"command": self.command_exiting(0), **self.impossible_job_variables})
        with pytest.raises(errors.ExecutorError):
            job.wait_ended()
        assert not job.identifiers, f"started() was called with {job.identifiers}"

    def test_two_jobs_at_once_are_separate(self, jobs: Jobs) -> None:
        """One executor serves all runs of a worker with a pool of threads."""
        lasting = jobs.start(self.command_lasting(LONG_SECONDS if self.can_kill else 5))
        lasting.wait_started()
        short = jobs.start(self.command_exiting(3))
        assert short.wait_ended().status_code == 3, "a job got the exit status of another"
        assert not lasting.has_ended, "the end of one job ended the other"
        assert short.identifiers != lasting.identifiers, "two jobs have one infrastructure pid"

    def test_error_of_started_stops_the_job_and_is_passed_on(
        self, executor: base.BaseExecutor
    ) -> None:
        """It means that somebody else has the run now."""
        identifiers: list[str] = []

        def refuse(identifier: str) -> None:
            identifiers.append(identifier)
            raise _Refused

        made = self.configure(command=self.command_lasting(LONG_SECONDS if self.can_kill else 5))
        with pytest.raises(_Refused):
            executor.run(new_flow_run(), made, refuse)
        if self.can_kill:
            with pytest.raises(errors.InfrastructureNotFound):
                executor.kill_infrastructure(identifiers[0], made, 0)

    # Killing

    def test_killing_a_job_ends_its_run(self, jobs: Jobs) -> None:
        """The call of run() returns as for a job that ends by itself."""
        self._needs_kill()
        job = jobs.start(self.command_lasting(LONG_SECONDS))
        job.kill(grace_seconds=5)
        assert job.wait_ended().identifier == job.identifiers[0], "the result names another job"

    def test_job_that_ignores_the_request_is_killed_after_the_grace(self, jobs: Jobs) -> None:
        """Politely first, then by force."""
        self._needs_kill()
        job = jobs.start(self.command_ignoring_sigterm(LONG_SECONDS))
        job.kill(grace_seconds=0.5)
        assert job.wait_ended().identifier == job.identifiers[0], "the result names another job"

    def test_killing_one_job_leaves_the_other(self, jobs: Jobs) -> None:
        """An infrastructure pid means one job."""
        self._needs_kill()
        one, other = (jobs.start(self.command_lasting(LONG_SECONDS)) for _ in range(2))
        other.wait_started()
        one.kill(grace_seconds=5)
        one.wait_ended()
        assert not other.has_ended, "both jobs were killed"

    def test_killing_a_job_that_is_gone_says_so(self, jobs: Jobs) -> None:
        """The dispatcher then reports the run without waiting for anybody."""
        self._needs_kill()
        job = jobs.start(self.command_exiting(0))
        job.wait_ended()
        with pytest.raises(errors.InfrastructureNotFound):
            job.kill(grace_seconds=0)

    def test_executor_that_cannot_kill_says_so(self, executor: base.BaseExecutor) -> None:
        """Set ``can_kill`` to what is true."""
        if self.can_kill:
            pytest.skip("it can kill")
        with pytest.raises(NotImplementedError):
            executor.kill_infrastructure("any", self.configure(), 0)

    def _needs_kill(self) -> None:
        if not self.can_kill:
            pytest.skip("it cannot kill")


class Jobs:
    """Starts the jobs of one test, which are then in ``started``."""

    def __init__(self, suite: ExecutorConformance, executor: base.BaseExecutor) -> None:
        self._suite = suite
        self._executor = executor
        self.started: list[running_job.RunningJob] = []

    def start(
        self, command: str, flow_run: schemas.FlowRun | None = None, **variables: Any
    ) -> running_job.RunningJob:
        """Start a job with a command and other job variables."""
        flow_run = flow_run or new_flow_run()
        made = self._suite.prepare(flow_run, command=command, **variables)
        job = running_job.RunningJob(self._executor, made, flow_run, self._suite.timeout_seconds)
        self.started.append(job)
        return job

    def close(self) -> None:
        """Stop what is still there."""
        for job in self.started:
            # It may end, or fail, at this very moment; then the test has said what was wrong.
            with contextlib.suppress(errors.ExecutorError):
                if not job.has_ended and self._suite.can_kill:
                    job.kill(grace_seconds=0)
                if not job.has_ended:
                    job.wait_ended()


class _Refused(Exception):
    """What ``started`` raises in a test."""


def new_flow_run() -> schemas.FlowRun:
    """Return a run that no server knows."""
    return schemas.FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name="conformance")
