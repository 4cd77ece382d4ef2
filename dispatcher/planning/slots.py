"""Counting the places where runs can execute."""

from __future__ import annotations


def free_slots(*, slots: int, used: int) -> int:
    """How many slots are free."""
    return max(slots - used, 0)


def run_slots(*, concurrency: int, serves_control: bool, serves_runs: bool) -> int:
    """How many runs a worker executes at once; one place stays free for control work.

    Raises:
        ValueError: a worker that serves both kinds of work has no place left for runs.
    """
    if not serves_runs:
        return 0
    if not serves_control:
        return concurrency
    if concurrency < 2:
        raise ValueError(_TOO_SMALL)
    return concurrency - 1


def standstill(held: int) -> str:
    """Say that the fleet's slots are held by runs whose child runs wait for a slot."""
    return (
        f"every slot ({held}) is held by a run whose child runs are due and wait for a slot; if"
        " these runs wait for their children, nothing goes on: start one more worker, or give the"
        " children a work pool with workers of its own"
    )


_TOO_SMALL = (
    "a worker that serves both queues needs --concurrency 2 or more, because one place is kept "
    "for control work; raise it, or serve one queue with -Q dispatcher.runs or "
    "-Q dispatcher.control"
)
