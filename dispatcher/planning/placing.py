"""Deciding which worker's slots each run takes."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol
from uuid import UUID

from dispatcher.ledger import claims
from dispatcher.planning import verdicts
from dispatcher.prefect_api import schemas

SLOTS_VARIABLE = "slots"


class Worker(Protocol):
    """What counts here of a Celery worker that is alive."""

    @property
    def name(self) -> str:
        """Its name in Celery."""

    @property
    def slots(self) -> int:
        """How many runs it executes at once."""

    @property
    def held_up(self) -> str:
        """Why it has fewer slots than at other times."""

    @property
    def pools(self) -> Sequence[str] | None:
        """The work pools that it serves; ``None`` if it does not say."""

    @property
    def work_queues(self) -> Sequence[str]:
        """The names of the work queues that it serves, all if empty."""

    def serves(self, pool: str) -> bool:
        """Whether it executes runs of a pool."""


@dataclass(frozen=True)
class Room:
    """What a Celery worker has to offer the runs of one work pool.

    ``breadth`` is how many pools it serves; ``work_queues`` are the names of those of this pool
    that it serves, all if empty. One that is ``held_up`` has more slots at other times.
    """

    node: str
    slots: int
    free: int
    breadth: int = 1
    work_queues: tuple[str, ...] = ()
    held_up: bool = False

    def takes(self, demand: Demand) -> bool:
        """Whether runs like this are executed there at all, however many slots they need."""
        return not self.work_queues or demand.work_queue in self.work_queues


@dataclass(frozen=True)
class Demand:
    """What a run needs: so many slots (``weight``) of a worker that serves its work queue."""

    flow_run_id: UUID
    weight: int = 1
    work_queue: str | None = None


@dataclass(frozen=True)
class Seat:
    """Where a run is to be executed: ``weight`` slots of the Celery worker ``node``."""

    node: str
    weight: int = 1


def weight_of(value: Any) -> int:
    """How many slots the value of the job variable ``slots`` stands for; 1 if it is not set.

    Raises:
        ValueError: it is no whole number from 1.
    """
    if value is None:
        return 1
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ValueError("a whole number, 1 or more")
    return number


def rooms_of(
    nodes: Iterable[Worker],
    used: Mapping[str, int],
    *,
    pool: str,
    shared_queues: Sequence[str] = (),
) -> tuple[Room, ...]:
    """What the workers that are alive have to offer a pool; ``used`` are their slots in use.

    Workers of a version that says nothing of pools share one queue, so they are one room, which
    serves the work queues of the names ``shared_queues``, as every worker did then. One room are
    two workers that were given one name, too: each may get what is meant for the other.
    """
    rooms: dict[str, Room] = {}
    counted: set[str] = set()
    for node in nodes:
        if not node.serves(pool):
            continue
        name = claims.ANYBODY if node.pools is None else node.name
        breadth = EVERY_POOL if node.pools is None else len(node.pools)
        queues = tuple(shared_queues if node.pools is None else node.work_queues)
        known = rooms.get(name, Room(name, 0, 0, breadth, queues))
        taken = sum(used.get(each, 0) for each in {name, node.name} - counted)
        counted |= {name, node.name}
        rooms[name] = replace(
            known,
            slots=known.slots + node.slots,
            free=known.free + node.slots - taken,
            held_up=known.held_up or bool(node.held_up),
        )
    return tuple(rooms.values())


EVERY_POOL = 1_000_000


def free_places(rooms: Iterable[Room]) -> int:
    """How many slots are free in all of them."""
    return sum(max(room.free, 0) for room in rooms)


def place(demands: Sequence[Demand], rooms: Sequence[Room]) -> dict[UUID, str]:
    """Find a worker for as many runs as can be, those that come first before all others.

    A run gets its slots where the fewest other runs could use them; where there are none left, runs
    that were placed before make room by going elsewhere, if that helps.
    """
    plan = _Plan(rooms)
    for demand in demands:
        plan.add(demand, frozenset())
    return {demand.flow_run_id: node for node, placed in plan.placed.items() for demand in placed}


class _Plan:
    """A placement that grows by augmenting paths."""

    def __init__(self, rooms: Sequence[Room]) -> None:
        self._rooms = rooms
        self._free = {room.node: room.free for room in rooms}
        self.placed: dict[str, list[Demand]] = {room.node: [] for room in rooms}

    def add(self, demand: Demand, tried: frozenset[str]) -> bool:
        """Place a run, if need be by moving others of one slot; ``tried`` makes no room again."""
        fitting = [room for room in self._rooms if room.takes(demand) and room.node not in tried]
        # The narrow ones first: who serves few queues, or few pools, helps nobody else.
        fitting.sort(key=lambda room: (not room.work_queues, room.breadth, -self._free[room.node]))
        for room in fitting:
            if self._free[room.node] >= demand.weight:
                self._put(demand, room.node)
                return True
        return demand.weight == 1 and any(
            self._make_room(room.node, demand, tried | {room.node}) for room in fitting
        )

    def _make_room(self, node: str, demand: Demand, tried: frozenset[str]) -> bool:
        for other in [each for each in self.placed[node] if each.weight == 1]:
            if self.add(other, tried):
                self.placed[node].remove(other)
                self._free[node] += 1
                self._put(demand, node)
                return True
        return False

    def _put(self, demand: Demand, node: str) -> None:
        self.placed[node].append(demand)
        self._free[node] -= demand.weight


def reserve(demand: Demand, rooms: Sequence[Room]) -> tuple[Room, ...]:
    """Keep the worker that is nearest to having room for a run from giving its slots to others."""
    fitting = [room for room in rooms if room.takes(demand) and room.slots >= demand.weight]
    if not fitting:
        return tuple(rooms)
    nearest = max(fitting, key=lambda room: room.free)
    return tuple(replace(room, free=0) if room is nearest else room for room in rooms)


def is_too_large(demand: Demand, rooms: Iterable[Room]) -> bool:
    """Whether there are workers that execute runs like this, but none is large enough ever."""
    fitting = [room for room in rooms if room.takes(demand)]
    return bool(fitting) and not any(
        room.held_up or room.slots >= demand.weight for room in fitting
    )


def too_large(demand: Demand, rooms: Iterable[Room]) -> verdicts.Report:
    """The end of a run for which no worker is large enough."""
    largest = max((room.slots for room in rooms if room.takes(demand)), default=0)
    return verdicts.Report(
        schemas.StateType.CRASHED,
        f"Flow run asks for {demand.weight} slots (job variable {SLOTS_VARIABLE}), but the largest"
        f" worker that serves it has {largest}. Ask for fewer, or start a worker"
        f" with --concurrency {demand.weight} or more.",
    )


def best_seat(demand: Demand, rooms: Collection[Room]) -> Seat | None:
    """Where to send a run that was claimed before, be there a free slot or not."""
    fitting = [room for room in rooms if room.takes(demand) and room.slots > 0]
    chosen = max(fitting, key=lambda room: (room.free, -room.breadth), default=None)
    return None if chosen is None else Seat(chosen.node, demand.weight)
