"""What the chaos runs execute in Prefect's own engine."""

from __future__ import annotations

import threading
from uuid import UUID

from prefect import flow, pause_flow_run
from prefect.deployments import run_deployment

from tests.chaos.flows import marks


@flow
def works(seconds: float) -> None:
    """Show for so long that it is executed."""
    marks.begin()
    marks.live(seconds)
    marks.mark("end")


@flow
def works_with_escapee(seconds: float) -> None:
    """The same, with a process that has left the session."""
    marks.leave_escapee()
    works.fn(seconds)


@flow(retries=1, retry_delay_seconds=1)
def works_at_second_try(seconds: float) -> None:
    """Fails once, and is retried by its own engine."""
    from prefect import runtime

    marks.begin()
    marks.live(seconds)
    if runtime.flow_run.run_count < 2:
        raise RuntimeError("as the test wants it")
    marks.mark("end")


@flow
def pauses(seconds: float) -> None:
    """Wait in its process for somebody to resume it."""
    marks.begin()
    pause_flow_run(timeout=120, poll_interval=1)
    marks.live(seconds)
    marks.mark("end")


@flow
def starts_child(seconds: float, deployment: str) -> None:
    """Wait for a run of another deployment, for so long at most."""
    marks.begin()
    alive = threading.Thread(target=marks.live, args=(seconds,), daemon=True)
    alive.start()
    run_deployment(UUID(deployment), timeout=seconds, poll_interval=0.5)
    marks.mark("end")
