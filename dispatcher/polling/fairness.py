"""Whose turn it is: deployments of one work queue share slots that are too few for all.

A poll shows the runs that have been due for longest, so the backlog of one deployment would hide
the runs of every other. Where a poll may have been cut short, one more request looks past the
deployments that it showed and those that have had a turn already. Once nobody is left who has not,
turns begin anew; so the wait for a turn is bounded by the number of deployments, not by anybody's
backlog.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from dispatcher import errors, planning
from dispatcher.ledger import turns_taken
from dispatcher.prefect_api import catalog, client, schemas

# How many due runs of other deployments a look shows, besides one for each free slot.
LOOK_ROWS = 20
# How long a look that found nobody else is believed.
ALONE_SECONDS = 1.0

StateType = schemas.StateType

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look:
    """What there is besides the rows of a poll: due runs of ``others``, turns had (``served``).

    Both are empty unless queues are ``contested``, in which not all can have their turn now.
    """

    contested: frozenset[UUID] = frozenset()
    others: tuple[schemas.FlowRun, ...] = ()
    served: Mapping[UUID, int] = field(default_factory=dict)


class Turns:
    """Finds out whose turn it is, and notes who has had one."""

    def __init__(
        self,
        api: client.PrefectClient,
        taken: turns_taken.TurnsTaken,
        known: catalog.Catalog,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._taken = taken
        self._catalog = known
        self._monotonic = monotonic
        self._alone_until: dict[str, float] = {}

    def look(
        self,
        pool: str,
        rows: Sequence[schemas.ScheduledFlowRun],
        *,
        limit: int,
        due_before: datetime,
        refused: Collection[UUID] = (),
    ) -> Look:
        """Find out who else waits in the queues of a poll's rows; ``limit`` was that of the poll.

        A server that does not want to say is served in the order of its rows.

        Raises:
            errors.ApiUnreachable: the API could not be asked.
        """
        try:
            return self._look(pool, rows, limit, due_before, frozenset(refused))
        except errors.ApiResponseError as error:
            logger.debug("nobody knows who else waits in work pool %r: %s", pool, error)
            return Look()

    def note(self, pool: str, runs: Sequence[schemas.FlowRun]) -> None:
        """Note who is having a turn."""
        self._taken.note(
            pool,
            Counter(run.deployment_id for run in runs if run.deployment_id is not None),
        )

    def _look(
        self,
        pool: str,
        rows: Sequence[schemas.ScheduledFlowRun],
        limit: int,
        due_before: datetime,
        refused: frozenset[UUID],
    ) -> Look:
        contested = self._contested(pool, rows, limit)
        if not contested or self._is_alone(pool):
            return Look()
        served = self._taken.read(pool)
        shown = {planning.turn_of(row.flow_run) for row in rows} - refused
        passed = shown | refused
        others = self._ask(pool, contested, passed | set(served), due_before, limit)
        anew = None if others else planning.next_turns(served, shown or set(served) - passed)
        if anew is not None:
            self._taken.replace(pool, anew)
            served = anew
            others = self._ask(pool, contested, passed | set(served), due_before, limit)
        if not others and not served:
            self._alone_until[pool] = self._monotonic() + ALONE_SECONDS
        return Look(contested, others, served)

    def _contested(
        self, pool: str, rows: Sequence[schemas.ScheduledFlowRun], limit: int
    ) -> frozenset[UUID]:
        if not rows:
            return frozenset()
        limited = [
            queue.id for queue in self._catalog.queues(pool) if queue.concurrency_limit is not None
        ]
        is_cut = len(rows) >= limit or self._catalog.pool(pool).concurrency_limit is not None
        return planning.contested_queues(rows, is_cut=is_cut, limited=limited)

    def _ask(
        self,
        pool: str,
        queue_ids: Collection[UUID],
        not_deployment_ids: Collection[UUID],
        due_before: datetime,
        limit: int,
    ) -> tuple[schemas.FlowRun, ...]:
        wanted = schemas.FlowRunFilter(
            state_types=[StateType.SCHEDULED],
            work_pool_names=[pool],
            work_queue_ids=queue_ids,
            not_deployment_ids=not_deployment_ids,
            due_before=due_before,
        )
        rows = min(limit + LOOK_ROWS, client.PAGE_LIMIT)
        return tuple(
            self._api.read_flow_runs(wanted, limit=rows, sort="NEXT_SCHEDULED_START_TIME_ASC")
        )

    def _is_alone(self, pool: str) -> bool:
        return self._monotonic() < self._alone_until.get(pool, 0.0)
