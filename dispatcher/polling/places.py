"""Where due runs can be executed: the fleet's free slots, seen from one work pool."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from dispatcher import errors, planning
from dispatcher.ledger import claims, fleet
from dispatcher.polling import endings
from dispatcher.prefect_api import catalog, client, schemas

# How long a run that needs several slots lets others take them before they are kept for it.
PATIENCE = timedelta(seconds=10)
# How long one for which no worker is large enough waits for a larger one.
HOPE = timedelta(seconds=30)

logger = logging.getLogger(__name__)

Choose = Callable[[int, frozenset[UUID]], Sequence[schemas.FlowRun]]


@dataclass(frozen=True)
class Placed:
    """A run and the worker whose slots it is to take."""

    run: schemas.FlowRun
    weight: int
    room: planning.Room


@dataclass(frozen=True)
class Placement:
    """Which runs find slots now; ``left`` are those that would be next but find none."""

    placed: tuple[Placed, ...]
    left: tuple[schemas.FlowRun, ...]


class Places:
    """Finds slots for the runs of a pool, on workers that serve it."""

    def __init__(
        self,
        api: client.PrefectClient,
        known: catalog.Catalog,
        book: claims.Ledger,
        workers: fleet.Fleet,
        shared_queues: Sequence[str] = (),
    ) -> None:
        self._api = api
        self._catalog = known
        self._ledger = book
        self._fleet = workers
        self._shared_queues = tuple(shared_queues)

    def rooms(self, pool: str) -> tuple[planning.Room, ...]:
        """What every worker that serves a pool has to offer it now."""
        nodes = self._fleet.nodes()
        used = self._ledger.used_slots([claims.ANYBODY, *(node.name for node in nodes)])
        return planning.rooms_of(nodes, used, pool=pool, shared_queues=self._shared_queues)

    def seat_for(self, run: schemas.FlowRun, pool: str) -> planning.Seat | None:
        """The best place for a run that was claimed before; ``None`` if nobody serves it."""
        rooms = self.rooms(pool)
        return planning.best_seat(self._demand(run, self._queues(pool, rooms)), rooms)

    def queues_to_ask(self, pool: str, rooms: Sequence[planning.Room]) -> Sequence[str]:
        """The work queues for whose runs there is a free slot; all if it is empty.

        Prefect refuses a poll that names one that does not exist.
        """
        free = [room.work_queues for room in rooms if room.free > 0]
        if not all(free):
            return ()
        names = {name for names in free for name in names}
        there = names.intersection(queue.name for queue in self._catalog.queues(pool))
        return sorted(there or names)

    def place(
        self, pool: str, choose: Choose, rooms: Sequence[planning.Room], now: datetime
    ) -> Placement:
        """Place the runs that ``choose`` names, given the free slots and the runs to pass over.

        One that has waited long for several slots has them kept free; one that no worker is large
        enough for is ended.
        """
        left: list[schemas.FlowRun] = []
        everything = rooms
        queues = self._queues(pool, rooms)
        while True:
            free = planning.free_places(rooms)
            runs = choose(free, frozenset(run.id for run in left)) if free else ()
            demands = {run.id: self._demand(run, queues) for run in runs}
            where = planning.place(list(demands.values()), rooms)
            without = [run for run in runs if run.id not in where]
            if not without:
                break
            for run in without:
                if demands[run.id].weight > 1 and _waits(run, now, PATIENCE):
                    rooms = planning.reserve(demands[run.id], rooms)
            left += without
        for run in left:
            demand = self._demand(run, queues)
            if planning.is_too_large(demand, everything) and _waits(run, now, HOPE):
                endings.end_unclaimed(self._api, [run.id], planning.too_large(demand, everything))
        by_node = {room.node: room for room in rooms}
        return Placement(
            tuple(Placed(run, demands[run.id].weight, by_node[where[run.id]]) for run in runs),
            tuple(left),
        )

    def _queues(self, pool: str, rooms: Iterable[planning.Room]) -> Mapping[UUID, str]:
        """The names of a pool's work queues, where somebody serves but some of them."""
        if not any(room.work_queues for room in rooms):
            return {}
        return {queue.id: queue.name for queue in self._catalog.queues(pool)}

    def _demand(self, run: schemas.FlowRun, queues: Mapping[UUID, str]) -> planning.Demand:
        own = (run.job_variables or {}).get(planning.SLOTS_VARIABLE)
        value = self._of_deployment(run) if own is None else own
        try:
            weight = planning.weight_of(value)
        except ValueError as error:
            variable = planning.SLOTS_VARIABLE
            logger.warning("flow run %s: job variable %s is to be %s", run.id, variable, error)
            weight = 1
        queue = queues.get(run.work_queue_id) if run.work_queue_id else None
        return planning.Demand(run.id, weight, queue)

    def _of_deployment(self, run: schemas.FlowRun) -> object:
        if run.deployment_id is None:
            return None
        try:
            return self._catalog.job_variable(run.deployment_id, planning.SLOTS_VARIABLE)
        except errors.ApiResponseError:
            return None


def _waits(run: schemas.FlowRun, now: datetime, patience: timedelta) -> bool:
    due = run.next_scheduled_start_time
    return due is not None and due < now - patience
