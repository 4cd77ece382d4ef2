"""Deciding whether a run's job is started."""

from __future__ import annotations

from enum import StrEnum
from uuid import UUID

from dispatcher.planning import claiming
from dispatcher.prefect_api import schemas


class StartDecision(StrEnum):
    """What an execute task does with the run that it has just read."""

    START = "start"
    CANCEL = "cancel"
    DROP = "drop"


def decide_start(
    state: schemas.State | None, *, transition_id: UUID, cancel_requested: bool
) -> StartDecision:
    """Decide from the run's state right before its job would be started.

    Prefect lets an engine execute a run that is already Cancelled, so nobody but the launcher can
    stop that.
    """
    if state is not None and state.is_cancelling:
        return StartDecision.CANCEL
    if not claiming.owns_pending(state, transition_id=transition_id):
        return StartDecision.DROP
    return StartDecision.CANCEL if cancel_requested else StartDecision.START
