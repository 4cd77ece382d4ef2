"""Work pool, deployments and flow runs on a real Prefect server, and how the runs fared."""

from __future__ import annotations

import dataclasses
import subprocess
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from benchmarks import contenders
from benchmarks import site as sites
from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects

FLOWS = Path(__file__).parent / "flows"
FLOW_FILE = "sample.py"

COUNT_SECONDS = 0.5  # between two looks at how many runs have ended
SINGLE_SECONDS = 0.05

State = schemas.StateType


@dataclasses.dataclass(frozen=True)
class Story:
    """A run's times, in seconds since the epoch by the server's clock."""

    pending: float
    running: float
    ended: float
    end: schemas.StateType


class Workload:
    """A new work pool of type ``process``, with the job template of Prefect's own command line."""

    def __init__(self, site: sites.Site, server: sites.PrefectServer, pool: str) -> None:
        self.api = site.connect_api(server.api_url)
        self.pool = pool
        self.objects = prefect_objects.PrefectObjects(self.api)
        self._request = self.api.transport.request
        create = contenders.prefect_command("work-pool", "create", pool, "--type", "process")
        subprocess.run(
            create,
            env={**site.environment, "PREFECT_API_URL": server.api_url},
            cwd=site.directory,
            check=True,
            stdout=subprocess.DEVNULL,
        )

    def deploy(self, flow: str, **values: Any) -> schemas.Deployment:
        """A deployment of one of the flows."""
        values = {"path": str(FLOWS), "entrypoint": f"{FLOW_FILE}:{flow}", **values}
        return self.objects.deployment(self.pool, flow, **values)

    def pause(self) -> None:
        """Have the server show no due runs to anybody."""
        self.objects.change_pool(self.pool, is_paused=True)

    def resume(self) -> float:
        """Undo :meth:`pause`; return the time just before, in seconds since the epoch."""
        now = time.time()
        self.objects.change_pool(self.pool, is_paused=False)
        return now

    def create(self, deployment: schemas.Deployment, runs: int, **values: Any) -> list[UUID]:
        """Runs that are due now."""
        return [self.objects.run(deployment, **values).id for _ in range(runs)]

    def wait_for_end(self, deployment: schemas.Deployment, runs: int, *, seconds: float) -> None:
        """Wait until so many runs of a deployment have ended."""
        sites.wait_for(
            lambda: self.count(deployment, schemas.TERMINAL_STATES) >= runs,
            seconds=seconds,
            what=f"{runs} runs end",
            every=COUNT_SECONDS,
        )

    def wait_for_state(self, run_id: UUID, state: schemas.StateType, *, seconds: float) -> None:
        """Wait until a run is in a state."""
        sites.wait_for(
            lambda: self.state(run_id) is state,
            seconds=seconds,
            what=f"a run is {state}",
            every=SINGLE_SECONDS,
        )

    def state(self, run_id: UUID) -> schemas.StateType | None:
        """The type of the state that a run is in."""
        state = self.api.read_flow_run(run_id).state
        return state.type if state else None

    def count(
        self, deployment: schemas.Deployment, types: Sequence[State] | frozenset[State]
    ) -> int:
        """How many runs of a deployment are in states of these types."""
        body = {
            "deployments": {"id": {"any_": [str(deployment.id)]}},
            "flow_runs": {"state": {"type": {"any_": [each.value for each in types]}}},
        }
        return int(self._request("POST", "/flow_runs/count", json=body))

    def story(self, run_id: UUID) -> Story:
        """What became of a run that has ended, and when."""
        states = self.api.read_flow_run_states(run_id)
        return Story(
            pending=_first(states, State.PENDING),
            running=_first(states, State.RUNNING),
            ended=_time(states[-1].timestamp),
            end=states[-1].type,
        )

    def times(self, run_id: UUID, state_type: schemas.StateType) -> list[float]:
        """When a run entered states of a type."""
        states = self.api.read_flow_run_states(run_id)
        return [_time(state.timestamp) for state in states if state.type is state_type]


def _first(states: Sequence[schemas.State], state_type: schemas.StateType) -> float:
    """When a run first entered a state of a type; NaN if it never did."""
    times = (_time(state.timestamp) for state in states if state.type is state_type)
    return next(times, float("nan"))


def _time(timestamp: datetime | None) -> float:
    assert timestamp is not None
    return timestamp.timestamp()
