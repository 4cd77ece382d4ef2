"""Deciding how a run gets cancelled."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum
from uuid import UUID

from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas


class CancelAction(StrEnum):
    """What the cancel task does about a run that is to be cancelled."""

    WAKE_HOLDER = "wake-holder"  # revoke its task; the holder stops the job and reports
    WAIT = "wait"  # the holder knows
    REPORT = "report"  # its task had not begun and never will: say so
    KILL = "kill"  # nobody holds it: kill what the infrastructure pid names, then report


_CANCEL_ACTIONS = {
    claims.CancelResult.MARKED: CancelAction.WAKE_HOLDER,
    claims.CancelResult.WAITING: CancelAction.WAIT,
    claims.CancelResult.CLOSED: CancelAction.REPORT,
}


def plan_unwanted(held: Iterable[UUID], states: Mapping[UUID, schemas.State | None]) -> list[UUID]:
    """Choose the held runs that are Cancelled already, or deleted and so not in ``states``."""
    return [run_id for run_id in held if run_id not in states or _is_over(states[run_id])]


def _is_over(state: schemas.State | None) -> bool:
    return state is not None and state.type is schemas.StateType.CANCELLED


def plan_cancellation(run: schemas.FlowRun, result: claims.CancelResult) -> CancelAction:
    """Decide how a run gets cancelled from what the ledger said about its claim."""
    if result is claims.CancelResult.ABSENT:
        return CancelAction.KILL if run.infrastructure_pid else CancelAction.REPORT
    return _CANCEL_ACTIONS[result]
