"""Runs of the sample flows that our image has, and what became of them."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

from dispatcher import errors
from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects
from tests import waiting

RUN_SECONDS = 120.0
EXAMPLES = "/opt/dispatcher/examples"

State = schemas.StateType


class SampleRuns:
    """Makes deployments and runs on a server, and watches them."""

    def __init__(self, objects: prefect_objects.PrefectObjects) -> None:
        self.objects = objects

    def deployment(
        self, flow: str, *, pool: str = "default", **variables: Any
    ) -> schemas.Deployment:
        step = {"prefect.deployments.steps.set_working_directory": {"directory": EXAMPLES}}
        return self.objects.deployment(
            pool,
            flow.replace("_", "-"),
            entrypoint=f"flows.py:{flow}",
            pull_steps=[step],
            job_variables=variables,
        )

    def run(self, deployment: schemas.Deployment, **parameters: Any) -> schemas.FlowRun:
        return self.objects.run(deployment, parameters=parameters)

    def state(self, run: schemas.FlowRun) -> schemas.State:
        state = self.objects.client.read_flow_run(run.id).state
        assert state is not None
        return state

    def wait_for(self, run: schemas.FlowRun, *types: State, seconds: float = RUN_SECONDS) -> None:
        def is_there() -> bool:
            # A server on a busy machine may fail a request.
            with contextlib.suppress(errors.ApiError):
                return self.state(run).type in types
            return False

        waiting.wait_for(
            is_there,
            seconds=seconds,
            every=0.25,
            what=f"run {run.name} is {' or '.join(types)}",
        )

    def starts(self, run: schemas.FlowRun) -> int:
        """How often a run has been Running."""
        return sum(state.type is State.RUNNING for state in self.objects.states(run.id))

    def wait_completed_once(self, runs: Sequence[schemas.FlowRun]) -> None:
        for run in runs:
            self.wait_for(run, *schemas.TERMINAL_STATES)
            assert self.state(run).type is State.COMPLETED, self.state(run)
            assert self.starts(run) == 1
