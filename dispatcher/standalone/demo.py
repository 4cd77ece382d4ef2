"""Runs the samples through a stack and says whether each ended as it has to."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from datetime import datetime
from pathlib import Path
from uuid import UUID

from dispatcher.prefect_api import client as clients
from dispatcher.prefect_api import schemas
from dispatcher.standalone import errors, samples

POLL_SECONDS = 0.5
DEPLOYMENT = "demo"


@dataclasses.dataclass
class Run:
    """A sample on its way; ``states`` is its history so far, oldest first."""

    sample: samples.Sample
    id: UUID
    states: list[schemas.State] = dataclasses.field(default_factory=list)
    is_cancel_sent: bool = False

    @property
    def state(self) -> schemas.State | None:
        """The state that the run is in."""
        return self.states[-1] if self.states else None

    @property
    def is_over(self) -> bool:
        """Whether the run has ended."""
        return self.state is not None and self.state.is_terminal

    @property
    def is_as_expected(self) -> bool:
        """Whether the run has ended in the state that its sample expects."""
        return self.state is not None and self.state.type is self.sample.expected

    @property
    def waited_seconds(self) -> float | None:
        """Seconds from due to claimed."""
        return self._between(schemas.StateType.SCHEDULED, schemas.StateType.PENDING)

    @property
    def starting_seconds(self) -> float | None:
        """Seconds from claimed to the flow's first line."""
        return self._between(schemas.StateType.PENDING, schemas.StateType.RUNNING)

    @property
    def running_seconds(self) -> float | None:
        """Seconds from the flow's first line to its end, retries included."""
        began, ended = self._first(schemas.StateType.RUNNING), self.state
        if began is None or ended is None or not ended.is_terminal:
            return None
        return _seconds(began, ended.timestamp)

    def _between(self, before: schemas.StateType, after: schemas.StateType) -> float | None:
        return _seconds(self._first(before), self._first(after))

    def _first(self, wanted: schemas.StateType) -> datetime | None:
        return next((each.timestamp for each in self.states if each.type is wanted), None)


class Demo:
    """The samples on one Prefect server.

    ``watch`` is called at every look at the runs; what it raises ends the demo.
    """

    def __init__(
        self,
        client: clients.PrefectClient,
        *,
        pool: str,
        flows_directory: Path,
        watch: Callable[[], None],
        show: Callable[[Sequence[Run]], None],
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._client = client
        self._pool = pool
        self._flows_directory = flows_directory
        self._watch = watch
        self._show = show
        self._clock = clock
        self._sleep = sleep

    def run(self, chosen: Sequence[samples.Sample], timeout_seconds: float) -> list[Run]:
        """Run the samples until all have ended or the time is over, and return what became of them.

        Raises:
            ApiError: the server does not do what it is asked.
        """
        deployments = {flow: self._deploy(flow) for flow in dict.fromkeys(s.flow for s in chosen)}
        runs = [Run(sample, self._create(deployments[sample.flow], sample)) for sample in chosen]
        deadline = self._clock() + timeout_seconds
        while not all(run.is_over for run in runs) and self._clock() < deadline:
            self._watch()
            self._look(runs)
            self._show(runs)
            self._sleep(POLL_SECONDS)
        return runs

    def _look(self, runs: Sequence[Run]) -> None:
        """Learn what has changed, and cancel what is to be cancelled."""
        chosen = schemas.FlowRunFilter(ids=[run.id for run in runs])
        now = {each.id: each.state_id for each in self._client.read_flow_runs(chosen)}
        for run in runs:
            if run.state is None or run.state.id != now.get(run.id):
                run.states = self._history(run.id)
            if run.sample.cancel and not run.is_cancel_sent and self._is_running(run):
                proposal = schemas.StateProposal(type=schemas.StateType.CANCELLING)
                self._client.set_flow_run_state(run.id, proposal)
                run.is_cancel_sent = True

    def _is_running(self, run: Run) -> bool:
        return run.state is not None and run.state.type is schemas.StateType.RUNNING

    def _history(self, flow_run_id: UUID) -> list[schemas.State]:
        rows = self._client.transport.request(
            "GET", "/flow_run_states/", params={"flow_run_id": str(flow_run_id)}
        )
        return [schemas.State.model_validate(row) for row in rows]

    def _deploy(self, flow: str) -> str:
        """Create a deployment as "flow.from_source(directory).deploy" would, and return its id."""
        request = self._client.transport.request
        # Prefect names a flow after its function, with dashes.
        created = request("POST", "/flows/", json={"name": flow.replace("_", "-")})
        directory = str(self._flows_directory)
        deployment = request(
            "POST",
            "/deployments/",
            json={
                "name": DEPLOYMENT,
                "flow_id": created["id"],
                "work_pool_name": self._pool,
                "entrypoint": f"{samples.FLOWS_FILE}:{flow}",
                "pull_steps": [
                    {"prefect.deployments.steps.set_working_directory": {"directory": directory}}
                ],
                "enforce_parameter_schema": False,
            },
        )
        return str(deployment["id"])

    def _create(self, deployment_id: str, sample: samples.Sample) -> UUID:
        created = self._client.transport.request(
            "POST",
            "/deployments/{id}/create_flow_run",
            names={"id": deployment_id},
            json={"name": sample.name, "parameters": dict(sample.parameters)},
        )
        return UUID(created["id"])


def check(runs: Sequence[Run]) -> None:
    """Check that every run has ended as its sample expects.

    Raises:
        DemoFailed: one or more have not.
    """
    wrong = [
        f"{run.sample.name} is {run.state.name if run.state else 'unknown'} "
        f"instead of {run.sample.expected.value.capitalize()}"
        for run in runs
        if not run.is_as_expected
    ]
    if wrong:
        raise errors.DemoFailed(f"Not as expected: {'; '.join(wrong)}.")


def _seconds(before: datetime | None, after: datetime | None) -> float | None:
    return (after - before).total_seconds() if before and after else None
