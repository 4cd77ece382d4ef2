"""A job that a test of an executor runs."""

from __future__ import annotations

import threading
from concurrent import futures

import pytest

from dispatcher.prefect_api import schemas
from executors import base, configuration


class RunningJob:
    """One call of an executor's ``run``, in a thread of its own."""

    def __init__(
        self,
        executor: base.BaseExecutor,
        run_configuration: configuration.BaseJobConfiguration,
        flow_run: schemas.FlowRun,
        timeout_seconds: float,
    ) -> None:
        self.configuration = run_configuration
        self.identifiers: list[str] = []
        self._executor = executor
        self._timeout = timeout_seconds
        self._started = threading.Event()
        self._future: futures.Future[base.ExecutorResult] = futures.Future()
        self._thread = threading.Thread(target=self._run, args=(flow_run,), daemon=True)
        self._thread.start()

    def wait_started(self) -> str:
        """Return the infrastructure pid once ``run`` has told it."""
        self._future.add_done_callback(lambda _: self._started.set())
        if not self._started.wait(self._timeout):
            pytest.fail(f"run() did not call started() within {self._timeout:g} s")
        if not self.identifiers:
            self._future.result()
            pytest.fail("run() returned without having called started()")
        return self.identifiers[0]

    def wait_ended(self) -> base.ExecutorResult:
        """Return what ``run`` returned; raises what it raised."""
        try:
            return self._future.result(self._timeout)
        except futures.TimeoutError:
            return pytest.fail(f"run() did not return within {self._timeout:g} s")

    @property
    def has_ended(self) -> bool:
        """Whether ``run`` has returned or raised."""
        return self._future.done()

    def kill(self, grace_seconds: float) -> None:
        """Stop the job as the dispatcher does."""
        self._executor.kill_infrastructure(self.wait_started(), self.configuration, grace_seconds)

    def _run(self, flow_run: schemas.FlowRun) -> None:
        try:
            self._future.set_result(
                self._executor.run(flow_run, self.configuration, self._note_started)
            )
        except Exception as error:  # noqa: BLE001 - raised where the test waits
            self._future.set_exception(error)

    def _note_started(self, identifier: str) -> None:
        self.identifiers.append(identifier)
        self._started.set()
