"""What to claim, and which claims Prefect granted: every branch, and what holds for any input."""

from __future__ import annotations

from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import planning
from dispatcher.api import schemas
from tests.unit import values

S = schemas.StateType
Status = schemas.OrchestrationStatus


@pytest.mark.parametrize(
    ("rows", "claimed", "free_slots", "chosen"),
    [
        # nothing is due
        ([], set(), 3, []),
        # no slot is free
        ([values.row(UUID(int=1))], set(), 0, []),
        # more claims than slots, because workers went away
        ([values.row(UUID(int=1))], set(), -2, []),
        # the server's order decides who gets the last slot
        ([values.row(UUID(int=2)), values.row(UUID(int=1))], set(), 1, [UUID(int=2)]),
        # a claimed run is passed over, and takes no slot
        ([values.row(UUID(int=1)), values.row(UUID(int=2))], {UUID(int=1)}, 1, [UUID(int=2)]),
        # a run that is shown twice is claimed once
        (
            [values.row(UUID(int=1)), values.row(UUID(int=1)), values.row(UUID(int=2))],
            set(),
            2,
            [1, 2],
        ),
        # a row may be old: the run is somebody's already
        ([values.row(UUID(int=1), S.PENDING)], set(), 1, []),
        # its own engine waits to go on with this one
        ([values.row(UUID(int=1), empirical_policy={"retry_type": "in_process"})], set(), 1, []),
        # a retry that was rescheduled is anybody's
        ([values.row(UUID(int=1), empirical_policy={"retry_type": "reschedule"})], set(), 1, [1]),
    ],
)
def test_claims_go_to_the_first_due_runs_that_are_free(
    rows: list[schemas.ScheduledFlowRun],
    claimed: set[UUID],
    free_slots: int,
    chosen: list[UUID | int],
) -> None:
    runs = planning.plan_claims(rows, claimed=claimed, free_slots=free_slots)
    assert [run.id for run in runs] == [UUID(int=int(item)) for item in chosen]


ROWS = st.lists(
    st.builds(
        values.row,
        st.integers(1, 30).map(lambda number: UUID(int=number)),
        st.sampled_from([S.SCHEDULED, S.SCHEDULED, S.PENDING, S.COMPLETED]),
        empirical_policy=st.sampled_from([{}, {"retry_type": "in_process"}]),
    )
)


def is_startable(item: schemas.ScheduledFlowRun) -> bool:
    return item.flow_run.state_type is S.SCHEDULED and item.flow_run.retry_type is None


RUN_IDS = st.sets(st.integers(1, 30).map(lambda number: UUID(int=number)))


@given(rows=ROWS, claimed=RUN_IDS, free_slots=st.integers(-3, 40))
def test_no_plan_takes_a_claimed_run_or_more_runs_than_slots(
    rows: list[schemas.ScheduledFlowRun], claimed: set[UUID], free_slots: int
) -> None:
    ids = [run.id for run in planning.plan_claims(rows, claimed=claimed, free_slots=free_slots)]
    offered = [item.flow_run.id for item in rows if is_startable(item)]
    assert len(ids) <= max(free_slots, 0)
    assert len(set(ids)) == len(ids)
    assert not claimed & set(ids)
    assert ids == sorted(ids, key=offered.index)


@given(rows=ROWS, claimed=RUN_IDS, free_slots=st.integers(0, 40))
def test_a_plan_that_leaves_a_slot_free_has_left_no_run_behind(
    rows: list[schemas.ScheduledFlowRun], claimed: set[UUID], free_slots: int
) -> None:
    chosen = {run.id for run in planning.plan_claims(rows, claimed=claimed, free_slots=free_slots)}
    startable = {item.flow_run.id for item in rows if is_startable(item)} - claimed
    assert len(chosen) == free_slots or chosen == startable


# What Prefect said to the claims


@pytest.mark.parametrize(
    ("verdict", "granted"),
    [
        # the plain case
        (values.result(Status.ACCEPT, values.PENDING), True),
        # the first answer was lost, and the request was repeated
        (values.result(Status.REJECT, values.PENDING), True),
        # another worker was quicker
        (values.result(Status.ABORT, values.PENDING_OF_ANOTHER), False),
        # no free concurrency slot: the server put it off
        (values.result(Status.REJECT, values.state(S.SCHEDULED, "AwaitingConcurrencySlot")), False),
        # the transition was ours, and the run has gone on since
        (values.result(Status.REJECT, values.state(S.RUNNING, "Running", values.MINE)), False),
        # a bulk proposal failed for this run
        (values.result(Status.ABORT, None), False),
        (values.result(Status.WAIT, values.SCHEDULED), False),
    ],
)
def test_a_run_is_ours_if_its_pending_state_is_ours(
    verdict: schemas.OrchestrationResult, granted: bool
) -> None:
    assert planning.is_granted(verdict, transition_id=values.MINE) is granted


@given(
    verdict=st.builds(
        values.result, st.sampled_from(list(Status)[1:]), st.none() | values.ANY_STATE
    )
)
def test_a_refusal_never_grants_a_run_that_is_not_pending_by_our_own_request(
    verdict: schemas.OrchestrationResult,
) -> None:
    granted = planning.is_granted(verdict, transition_id=values.MINE)
    assert granted is planning.owns_pending(verdict.state, transition_id=values.MINE)
