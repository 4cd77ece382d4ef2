"""Counting slots."""

from __future__ import annotations

import pytest

from dispatcher import planning


@pytest.mark.parametrize(("slots", "used", "free"), [(4, 1, 3), (4, 4, 0), (2, 5, 0)])
def test_free_slots_are_never_negative(slots: int, used: int, free: int) -> None:
    assert planning.free_slots(slots=slots, used=used) == free


@pytest.mark.parametrize(
    ("concurrency", "serves_control", "serves_runs", "slots"),
    [
        # one place is kept for control work
        (4, True, True, 3),
        (2, True, True, 1),
        # nothing but runs
        (4, False, True, 4),
        (1, False, True, 1),
        # nothing but control, or neither
        (4, True, False, 0),
        (1, False, False, 0),
    ],
)
def test_a_workers_slots_leave_room_for_its_control_work(
    concurrency: int, serves_control: bool, serves_runs: bool, slots: int
) -> None:
    counted = planning.run_slots(
        concurrency=concurrency, serves_control=serves_control, serves_runs=serves_runs
    )
    assert counted == slots


def test_a_worker_of_one_place_cannot_serve_both_queues() -> None:
    with pytest.raises(ValueError, match="--concurrency 2 or more"):
        planning.run_slots(concurrency=1, serves_control=True, serves_runs=True)


def test_a_standstill_says_how_many_slots_are_held_and_what_to_do() -> None:
    told = planning.standstill(3)
    assert "every slot (3)" in told
    assert "start one more worker" in told
