"""Which worker's slots a run takes: as many runs as can be, in their order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dispatcher import planning
from dispatcher.ledger import claims, fleet
from dispatcher.prefect_api import schemas

QUEUES = ("default", "gpu", "slow")

rooms = st.lists(
    st.builds(
        planning.Room,
        node=st.just(""),
        slots=st.just(3),
        free=st.integers(-1, 3),
        breadth=st.integers(1, 3),
        work_queues=st.lists(st.sampled_from(QUEUES), unique=True).map(tuple),
    ),
    max_size=3,
).map(
    lambda found: [
        planning.Room(f"w{number}", room.slots, room.free, room.breadth, room.work_queues)
        for number, room in enumerate(found)
    ]
)


def demands(weights: st.SearchStrategy[int]) -> st.SearchStrategy[list[planning.Demand]]:
    each = st.tuples(weights, st.sampled_from(QUEUES))
    return st.lists(each, max_size=5).map(
        lambda found: [
            planning.Demand(UUID(int=number + 1), weight, queue)
            for number, (weight, queue) in enumerate(found)
        ]
    )


def placements(
    wanted: Sequence[planning.Demand], offered: Sequence[planning.Room]
) -> Iterator[dict[UUID, str]]:
    """Every way in which some of the runs find slots."""
    for nodes in itertools.product([None, *(room.node for room in offered)], repeat=len(wanted)):
        chosen = {
            demand.flow_run_id: node for demand, node in zip(wanted, nodes, strict=True) if node
        }
        if is_sound(chosen, wanted, offered):
            yield chosen


def is_sound(
    chosen: dict[UUID, str], wanted: Sequence[planning.Demand], offered: Sequence[planning.Room]
) -> bool:
    for room in offered:
        there = [each for each in wanted if chosen.get(each.flow_run_id) == room.node]
        if there and sum(each.weight for each in there) > room.free:
            return False
        if not all(room.takes(each) for each in there):
            return False
    return True


@settings(deadline=None)
@given(demands(st.just(1)), rooms)
def test_runs_of_one_slot_are_placed_as_in_the_best_of_all_ways(
    wanted: list[planning.Demand], offered: list[planning.Room]
) -> None:
    chosen = planning.place(wanted, offered)
    assert is_sound(chosen, wanted, offered)

    def in_order(placed: dict[UUID, str]) -> list[bool]:
        return [each.flow_run_id in placed for each in wanted]

    # The first of the order that can be had: nobody gives way to those behind him.
    assert in_order(chosen) == max(in_order(placed) for placed in placements(wanted, offered))
    assert len(chosen) == max(len(placed) for placed in placements(wanted, offered))


@settings(deadline=None)
@given(demands(st.integers(1, 4)), rooms)
def test_runs_of_several_slots_never_take_more_than_there_are(
    wanted: list[planning.Demand], offered: list[planning.Room]
) -> None:
    chosen = planning.place(wanted, offered)
    assert is_sound(chosen, wanted, offered)
    for demand in wanted:
        if demand.flow_run_id not in chosen:
            left = {
                room.node: room.free
                - sum(each.weight for each in wanted if chosen.get(each.flow_run_id) == room.node)
                for room in offered
            }
            assert not any(
                room.takes(demand) and left[room.node] >= demand.weight for room in offered
            )


def test_a_run_leaves_the_workers_that_serve_more_pools_to_others() -> None:
    offered = [planning.Room("wide", 2, 2, breadth=3), planning.Room("narrow", 1, 1, breadth=1)]
    wanted = [planning.Demand(UUID(int=number)) for number in (1, 2)]
    chosen = planning.place(wanted, offered)
    assert [chosen[each.flow_run_id] for each in wanted] == ["narrow", "wide"]


def test_runs_spread_over_workers_of_one_kind() -> None:
    offered = [planning.Room("busy", 4, 2), planning.Room("idle", 4, 4)]
    wanted = [planning.Demand(UUID(int=number)) for number in range(1, 5)]
    assert sorted(planning.place(wanted, offered).values()) == ["busy", "idle", "idle", "idle"]


def test_a_run_that_was_placed_gives_way_to_one_that_can_go_nowhere_else() -> None:
    # Each is the narrowest for the run that comes first there.
    offered = [
        planning.Room("gpu", 1, 1, breadth=1, work_queues=("gpu", "default")),
        planning.Room("all", 1, 1, breadth=2, work_queues=("default",)),
    ]
    wanted = [
        planning.Demand(UUID(int=1), 1, "default"),
        planning.Demand(UUID(int=2), 1, "gpu"),
    ]
    assert planning.place(wanted, offered) == {UUID(int=1): "all", UUID(int=2): "gpu"}


def node(name: str, slots: int, **values: Any) -> fleet.Node:
    return fleet.Node(name, 1, slots, serves_control=False, version="1", **values)


def test_a_pool_sees_the_workers_that_serve_it() -> None:
    nodes = [
        node("a", 4, pools=("a",)),
        node("ab", 2, pools=("a", "b"), work_queues=("gpu",)),
        node("b", 9, pools=("b",)),
        node("control", 0, pools=()),
    ]
    assert planning.rooms_of(nodes, {"a": 1, "ab": 3, "b": 2}, pool="a") == (
        planning.Room("a", 4, 3),
        planning.Room("ab", 2, -1, breadth=2, work_queues=("gpu",)),
    )


def test_workers_of_an_earlier_version_share_what_anybody_may_take() -> None:
    nodes = [node("old", 3), node("older", 2, held_up="rate"), node("new", 1, pools=("a",))]
    used = {claims.ANYBODY: 2, "old": 1, "older": 1, "new": 0}
    anybody, new = planning.rooms_of(nodes, used, pool="a", shared_queues=["gpu"])
    assert (anybody.work_queues, new.work_queues) == (("gpu",), ())
    assert (anybody.node, anybody.slots, anybody.free) == (claims.ANYBODY, 5, 1)
    assert anybody.held_up
    assert anybody.breadth > new.breadth
    assert planning.free_places([anybody, new]) == 2


def test_two_workers_of_one_name_are_one() -> None:
    nodes = [node("same", 3, pools=("a",)), node("same", 2, pools=("a",))]
    assert planning.rooms_of(nodes, {"same": 4}, pool="a") == (planning.Room("same", 5, 1),)


@pytest.mark.parametrize(("value", "weight"), [(None, 1), (1, 1), (3, 3), ("4", 4)])
def test_a_job_variable_tells_how_many_slots_a_run_takes(value: object, weight: int) -> None:
    assert planning.weight_of(value) == weight


@pytest.mark.parametrize("value", [0, -1, "many", "0", 1.5, True, [1], "1.5"])
def test_what_is_no_number_of_slots_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="whole number"):
        planning.weight_of(value)


def test_slots_are_kept_where_there_will_soonest_be_enough() -> None:
    heavy = planning.Demand(UUID(int=1), 3, "default")
    small, near, far = (
        planning.Room("small", 2, 2),
        planning.Room("near", 4, 2),
        planning.Room("far", 4, 1),
    )
    foreign = planning.Room("foreign", 8, 2, work_queues=("gpu",))
    kept = {room.node: room.free for room in planning.reserve(heavy, [small, near, far, foreign])}
    assert kept == {"small": 2, "near": 0, "far": 1, "foreign": 2}
    assert planning.reserve(heavy, [small, foreign]) == (small, foreign)


def test_a_run_is_too_large_only_where_every_worker_is_as_large_as_it_gets() -> None:
    heavy = planning.Demand(UUID(int=1), 9, "default")
    small, gpu = planning.Room("small", 3, 0), planning.Room("gpu", 20, 0, work_queues=("gpu",))
    assert planning.is_too_large(heavy, [small, gpu])
    assert not planning.is_too_large(heavy, [gpu])
    assert not planning.is_too_large(heavy, [small, planning.Room("large", 9, 0)])
    assert not planning.is_too_large(heavy, [planning.Room("down", 3, 0, held_up=True)])
    end = planning.too_large(heavy, [small, gpu])
    assert end.state is schemas.StateType.CRASHED
    assert "9 slots" in end.message
    assert "has 3." in end.message


def test_a_run_that_is_sent_again_goes_where_most_is_free() -> None:
    wanted = planning.Demand(UUID(int=1), 2, "default")
    full, fuller = planning.Room("full", 4, 0), planning.Room("fuller", 4, -2)
    away, gpu = planning.Room("away", 0, 0), planning.Room("gpu", 4, 4, work_queues=("gpu",))
    assert planning.best_seat(wanted, [fuller, full, away, gpu]) == planning.Seat("full", 2)
    assert planning.best_seat(wanted, [away, gpu]) is None
