"""Runs of ``tests/flows/environment_flows.py``, wherever they are executed."""

from __future__ import annotations

from dispatcher.prefect_api import schemas
from tests import stack as stacks
from tests import waiting

FILE = "environment_flows.py"
SECONDS = 120.0


def said(run: stacks.Run) -> dict[str, str]:
    """What a run has told of where it is executed."""
    return dict(line.split("=", 1) for line in run.lines())


def wait_until_running(run: stacks.Run) -> tuple[int, int]:
    """Wait for a run that waits; its process and the one that it has started elsewhere."""
    pid, child = (int(text) for text in run.wait_for_line("running").split()[1:])
    return pid, child


def cancel(run: stacks.Run) -> None:
    """Cancel a run that waits: its hooks are executed, and nothing of it is left."""
    pids = wait_until_running(run)
    run.cancel()
    assert run.wait_for_end(seconds=SECONDS).type is schemas.StateType.CANCELLED
    run.wait_for_line("cancelled")
    wait_until_gone(*pids)


def wait_until_gone(*pids: int) -> None:
    """Wait until none of these processes is alive."""
    waiting.wait_for(
        lambda: not any(stacks.is_alive(pid) for pid in pids),
        seconds=stacks.VANISH_SECONDS,
        what="nothing of it is left",
    )
