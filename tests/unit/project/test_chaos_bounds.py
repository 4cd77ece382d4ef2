"""The chaos driver's own sense of time: what it takes for a broken promise, and what it excuses."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from uuid import UUID

import pytest

from dispatcher.prefect_api import schemas
from tests.chaos import invariants, pauses, records

S = schemas.StateType
BOUND = invariants.BOUND_SECONDS


def pause(began: float, ended: float = math.inf, *, aftermath: float = 0.0) -> pauses.Pause:
    times = iter([began, ended])
    made = pauses.Pause("Redis", aftermath, clock=lambda: next(times))
    if ended < math.inf:
        made.end()
    return made


@pytest.mark.parametrize(
    ("felt", "calm"),
    [
        ([], 100),
        ([pause(0, 50)], 100),
        ([pause(220, 230)], 100),
        ([pause(110, 120)], 90),
        ([pause(110, 120, aftermath=5)], 85),
        ([pause(90, 98, aftermath=5)], 97),
        ([pause(110, 130), pause(120, 125), pause(128, 140)], 70),
        ([pause(150, 160), pause(110, 120)], 80),
        ([pause(190, 250)], 90),
        ([pause(150)], 50),
        ([pause(50, 300)], 0),
    ],
)
def test_only_time_that_no_pause_covers_is_calm(felt: list[pauses.Pause], calm: float) -> None:
    assert pauses.calm_seconds(100, 200, felt) == calm


def state(type_: S, at: float) -> schemas.State:
    return schemas.State(type=type_, timestamp=datetime.fromtimestamp(at, UTC))


def record(*history: schemas.State, beats: Sequence[float] = ()) -> records.Record:
    marks = tuple(records.Mark("beat", 7, at, at) for at in beats)
    executions = (records.Execution(7, marks),) if marks else ()
    return records.Record(UUID(int=1), "kind", "", False, history, executions)


def broken(found: records.Record, felt: Sequence[pauses.Pause] = ()) -> list[str]:
    return list(invariants.is_never_forgotten(found, felt))


def test_a_run_that_goes_without_a_sign_of_life_for_too_long_is_found() -> None:
    late = record(state(S.RUNNING, 100), state(S.CRASHED, 130 + BOUND), beats=[110, 120, 129])
    in_time = record(state(S.RUNNING, 100), state(S.CRASHED, 130 + BOUND), beats=[110, 130])
    assert "RUNNING without a sign of life" in broken(late)[0]
    assert broken(in_time) == []


def test_a_pause_excuses_its_own_time_and_no_more() -> None:
    late = record(state(S.PENDING, 100), state(S.SCHEDULED, 111 + BOUND))
    assert broken(late, [pause(105, 116)]) == []
    assert broken(late, [pause(105, 115)])
    assert broken(late, [pause(90, 100)])


def test_a_run_that_is_executed_by_a_worker_of_other_pools_is_found() -> None:
    begun = records.Mark("begin", 7, 1, 1, ("a,b",))
    execution = records.Execution(7, (begun,))
    found = dataclasses.replace(record(), executions=(execution,))
    where = [
        list(invariants.is_where_it_belongs(dataclasses.replace(found, pool=pool)))
        for pool in ("a", "c", None)
    ]
    assert where == [[], ["c was executed by a worker of a, b"], []]


def test_nobody_has_to_take_care_of_a_run_that_is_scheduled() -> None:
    assert broken(record(state(S.SCHEDULED, 0), state(S.PENDING, 1000))) == []


@pytest.mark.parametrize("step", [S.SCHEDULED, S.PENDING, S.CRASHED])
@pytest.mark.parametrize(
    ("seconds_later", "is_fault"), [(invariants.UNDER_WAY_SECONDS / 2, False), (2.0, True)]
)
def test_what_follows_a_cancel_is_a_fault_unless_it_was_under_way(
    step: S, seconds_later: float, is_fault: bool
) -> None:
    history = [state(S.RUNNING, 0), state(S.CANCELLING, 10), state(step, 10 + seconds_later)]
    found = record(*history, state(S.CANCELLED, 20))
    assert bool(list(invariants.is_cancelled_if_asked(found))) is is_fault


def test_the_state_that_a_run_has_comes_last_whatever_its_date() -> None:
    queued = state(S.CRASHED, 10).model_copy(update={"id": UUID(int=1)})
    put_back = state(S.SCHEDULED, 20).model_copy(update={"id": UUID(int=2)})
    assert records.in_order([queued, put_back], queued) == (put_back, queued)
    assert records.in_order([queued, put_back], put_back) == (queued, put_back)
    assert records.in_order([queued, put_back], None) == (queued, put_back)


@pytest.mark.parametrize(
    ("seconds_later", "message", "is_fault"),
    [
        (invariants.REPORTING_SECONDS / 2, None, False),
        (invariants.REPORTING_SECONDS / 2, "Its worker was lost.", True),
        (invariants.REPORTING_SECONDS * 2, None, True),
    ],
)
def test_only_an_engine_that_was_stopped_while_it_told_its_end_may_crash_its_run_after_it(
    seconds_later: float, message: str | None, *, is_fault: bool
) -> None:
    crash = state(S.CRASHED, 10 + seconds_later).model_copy(update={"message": message})
    found = record(state(S.RUNNING, 0), state(S.COMPLETED, 10), crash)
    assert bool(list(invariants.keeps_its_end(found))) is is_fault


@pytest.mark.parametrize(("word", "is_fault"), [("end", False), ("beat", True)])
def test_an_end_that_hung_in_the_server_when_its_run_was_cancelled_counts_if_the_flow_reached_it(
    word: str, *, is_fault: bool
) -> None:
    executions = (records.Execution(7, (records.Mark(word, 7, 15, 15),)),)
    cancelled = [state(S.RUNNING, 0), state(S.CANCELLING, 10), state(S.CANCELLED, 30)]
    found = dataclasses.replace(record(*cancelled, state(S.COMPLETED, 20)), executions=executions)
    assert bool(list(invariants.is_cancelled_if_asked(found))) is is_fault
    assert not list(invariants.keeps_its_end(found))


def test_an_end_that_was_sent_after_the_run_was_cancelled_is_a_fault() -> None:
    history = [state(S.CANCELLING, 10), state(S.CANCELLED, 20), state(S.COMPLETED, 30)]
    assert list(invariants.is_cancelled_if_asked(record(*history)))
    assert list(invariants.keeps_its_end(record(*history)))
