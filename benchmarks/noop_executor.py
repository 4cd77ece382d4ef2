"""Work pools of type ``noop``: jobs that are over the moment they start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from dispatcher.prefect_api import schemas
from executors import base

TYPE = "noop"
ENTRY_POINT = "benchmarks.noop_executor:NoopExecutor"


class NoopExecutor(base.BaseExecutor):
    """Starts nothing, and says that the engine has left the run Completed."""

    type = TYPE

    def run(
        self,
        flow_run: schemas.FlowRun,
        configuration: Any,  # noqa: ARG002 - there is nothing to start
        started: Callable[[str], None],
    ) -> base.ExecutorResult:
        identifier = f"noop:{flow_run.id}"
        started(identifier)
        return base.ExecutorResult(identifier, 0, schemas.StateType.COMPLETED)
