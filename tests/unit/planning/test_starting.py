"""Whether a run's job is started: every branch, and what holds for any input."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import planning
from dispatcher.prefect_api import schemas
from tests.unit import values

S = schemas.StateType


@pytest.mark.parametrize(
    ("now", "cancel_requested", "decision"),
    [
        (values.PENDING, False, "start"),
        # the ledger knew of the cancel before the state was read
        (values.PENDING, True, "cancel"),
        (values.CANCELLING, False, "cancel"),
        (values.CANCELLING_BY_2X, False, "cancel"),
        # Prefect would let the engine execute it all the same
        (values.CANCELLED, False, "drop"),
        # claimed anew by somebody else
        (values.PENDING_OF_ANOTHER, False, "drop"),
        (values.PENDING_OF_ANOTHER, True, "drop"),
        (values.state(S.PENDING, "Pending"), False, "drop"),
        # rescheduled, or started by somebody else, or over
        (values.SCHEDULED, False, "drop"),
        (values.RUNNING, True, "drop"),
        (values.COMPLETED, False, "drop"),
        # a run without any state
        (None, False, "drop"),
    ],
)
def test_a_job_is_started_only_for_a_run_that_is_pending_by_our_claim(
    now: schemas.State | None, cancel_requested: bool, decision: str
) -> None:
    decided = planning.decide_start(
        now, transition_id=values.MINE, cancel_requested=cancel_requested
    )
    assert decided == decision


@given(now=st.none() | values.ANY_STATE, cancel_requested=st.booleans())
def test_nothing_but_our_own_pending_state_is_ever_started(
    now: schemas.State | None, cancel_requested: bool
) -> None:
    decided = planning.decide_start(
        now, transition_id=values.MINE, cancel_requested=cancel_requested
    )
    ours = planning.owns_pending(now, transition_id=values.MINE)
    assert (decided is planning.StartDecision.START) == (ours and not cancel_requested)
