"""What to claim, and which claims Prefect granted: every branch, and what holds for any input."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import planning
from dispatcher.prefect_api import schemas
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


NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("state_name", "seconds", "is_chosen"),
    [
        ("AwaitingRetry", 5, False),
        ("AwaitingRetry", 0, True),
        ("AwaitingRetry", -5, True),
        ("Scheduled", 5, True),
    ],
)
def test_a_run_that_is_to_be_started_again_keeps_no_slot_before_it_is_due(
    state_name: str, seconds: float, is_chosen: bool
) -> None:
    due = NOW + timedelta(seconds=seconds)
    put_off = values.row(UUID(int=1), state_name=state_name, next_scheduled_start_time=due)
    later = NOW + timedelta(seconds=9)
    rows = [put_off, values.row(UUID(int=2), next_scheduled_start_time=later)]
    chosen = planning.plan_claims(rows, claimed=set(), free_slots=1, now=NOW)
    assert [run.id for run in chosen] == [UUID(int=1 if is_chosen else 2)]
    waiting = planning.plan_claims(
        rows[1:], [rows[0].flow_run], claimed=set(), free_slots=1, now=NOW
    )
    assert [run.id for run in waiting] == [UUID(int=2)] or is_chosen


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


# Turns

FIRST_QUEUE, SECOND_QUEUE = UUID(int=71), UUID(int=72)
A, B, C = (UUID(int=100 + number) for number in range(3))
START = datetime(2030, 1, 1, tzinfo=UTC)


def due_run(number: int, deployment: UUID | None, queue: UUID = FIRST_QUEUE) -> schemas.FlowRun:
    """A run that became due so many seconds after the start."""
    return values.flow_run(
        UUID(int=1000 + number),
        state_type=S.SCHEDULED,
        deployment_id=deployment,
        work_queue_id=queue,
        next_scheduled_start_time=START + timedelta(seconds=number),
    )


def shown(*runs: schemas.FlowRun) -> list[schemas.ScheduledFlowRun]:
    """The rows of a poll that shows these runs."""
    return [
        schemas.ScheduledFlowRun(
            work_pool_id=UUID(int=6), work_queue_id=run.work_queue_id or UUID(int=7), flow_run=run
        )
        for run in runs
    ]


def numbers(
    rows: list[schemas.ScheduledFlowRun], *others: schemas.FlowRun, **options: Any
) -> list[int]:
    options = {"claimed": set(), "free_slots": len(rows), **options}
    return [run.id.int - 1000 for run in planning.plan_claims(rows, others, **options)]


def test_deployments_share_the_slots_that_a_poll_gave_to_one() -> None:
    rows = shown(*(due_run(number, A) for number in range(4)))
    others = [due_run(10, B), due_run(11, B), due_run(12, C)]
    assert numbers(rows, *others) == [0, 10, 12, 1]


def test_who_has_had_a_turn_comes_after_those_who_have_not() -> None:
    rows = shown(due_run(0, A))
    assert numbers(rows, due_run(10, B)) == [0]
    assert numbers(rows, due_run(10, B), served={A: 1}) == [10]
    assert numbers(rows, due_run(10, B), served={A: 1, B: 1}) == [0]


def test_turns_begin_anew_once_all_who_wait_have_had_one() -> None:
    assert planning.next_turns({A: 1}, {A, B}) is None
    assert planning.next_turns({}, {A}) is None
    assert planning.next_turns({A: 3, B: 1, C: 1}, {A, B}) == {A: 2}
    assert planning.next_turns({A: 5}, {A}) == {}


def test_a_queue_gets_no_more_than_the_poll_let_through() -> None:
    rows = shown(due_run(0, A), due_run(1, A, SECOND_QUEUE))
    others = [due_run(10, B, SECOND_QUEUE), due_run(11, C, SECOND_QUEUE)]
    assert numbers(rows, *others, free_slots=10, served={A: 1}) == [0, 10]


def test_the_place_of_a_refused_deployment_goes_to_another() -> None:
    rows = shown(due_run(0, A), due_run(1, A))
    assert numbers(rows, due_run(10, B), refused={A}) == [10]


def test_a_run_without_a_deployment_takes_turns_for_itself() -> None:
    alone = due_run(5, None)
    rows = shown(due_run(0, A), due_run(1, A), alone)
    assert planning.turn_of(alone) == alone.id
    assert numbers(rows, free_slots=3) == [0, 5, 1]


def test_an_answer_that_was_cut_off_leaves_the_last_queue_contested() -> None:
    rows = shown(due_run(0, A), due_run(1, A, SECOND_QUEUE))
    contested = planning.contested_queues(rows, is_cut=True, limited=())
    assert contested == {SECOND_QUEUE}
    assert planning.contested_queues(rows, is_cut=False, limited=()) == frozenset()
    assert planning.contested_queues([], is_cut=True, limited=()) == frozenset()


def test_a_queue_with_a_limit_of_its_own_is_contested_whenever_it_shows_runs() -> None:
    rows = shown(due_run(0, A))
    limited = {FIRST_QUEUE, SECOND_QUEUE}
    assert planning.contested_queues(rows, is_cut=False, limited=limited) == {FIRST_QUEUE}


BACKLOGS = st.dictionaries(st.sampled_from([A, B, C]), st.integers(1, 12), min_size=1)


@given(backlogs=BACKLOGS, slots=st.integers(1, 4), data=st.data())
def test_nobody_waits_while_another_has_more_than_one_turn_more(
    backlogs: dict[UUID, int], slots: int, data: st.DataObject
) -> None:
    """Serve a queue until it is empty as the poller does, the oldest runs shown first."""
    counter = count()
    waiting = [
        due_run(next(counter), deployment)
        for deployment in data.draw(st.permutations(sorted(backlogs)))
        for _ in range(backlogs[deployment])
    ]
    served: Counter[UUID] = Counter()
    turns: Counter[UUID] = Counter()
    while waiting:
        rows = shown(*waiting[:slots])
        anew = planning.next_turns(served, {planning.turn_of(run) for run in waiting})
        served = Counter(served if anew is None else anew)
        plan = planning.plan_claims(rows, waiting, claimed=set(), free_slots=slots, served=served)
        assert len(plan) == min(slots, len(waiting))
        served += Counter(planning.turn_of(run) for run in plan)
        turns += Counter(planning.turn_of(run) for run in plan)
        waiting = [run for run in waiting if run not in plan]
        left = {planning.turn_of(run) for run in waiting}
        for deployment in left:
            assert max(turns.values()) - turns[deployment] <= 1
    assert turns == Counter(backlogs)


@given(
    placed=st.lists(st.tuples(st.booleans(), st.sampled_from([A, B, C])), max_size=20),
    more=st.lists(st.tuples(st.booleans(), st.sampled_from([A, B, C])), max_size=20),
    served=st.dictionaries(st.sampled_from([A, B, C]), st.integers(1, 3)),
    free_slots=st.integers(0, 20),
)
def test_turns_never_cross_the_priority_of_queues(
    placed: list[tuple[bool, UUID]],
    more: list[tuple[bool, UUID]],
    served: dict[UUID, int],
    free_slots: int,
) -> None:
    counter = count()

    def runs(wanted: list[tuple[bool, UUID]]) -> list[schemas.FlowRun]:
        by_priority = sorted(wanted, key=lambda pair: not pair[0])
        return [
            due_run(next(counter), deployment, FIRST_QUEUE if first else SECOND_QUEUE)
            for first, deployment in by_priority
        ]

    rows, others = runs(placed), runs(more)
    plan = planning.plan_claims(
        shown(*rows), others, claimed=set(), free_slots=free_slots, served=served
    )
    let_through = Counter(run.work_queue_id for run in rows[:free_slots])
    assert Counter(run.work_queue_id for run in plan) == let_through
    urgent = [run.work_queue_id == FIRST_QUEUE for run in plan]
    assert urgent == sorted(urgent, reverse=True)


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
