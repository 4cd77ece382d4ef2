"""Slots that give nothing any more: their runs wait for runs that wait for a slot."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection

from dispatcher import planning
from dispatcher.ledger import claims, fleet, rounds
from dispatcher.prefect_api import child_runs, client

LOOK = "slots"
WARNING = "slots-warning"
LOOK_SECONDS = 30.0  # between two looks
REMIND_SECONDS = 3600.0  # between two warnings of one standstill

logger = logging.getLogger(__name__)


class SlotWatch:
    """Warns once when every slot is held by a run whose child runs wait for a slot."""

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        workers: fleet.Fleet,
        turns: rounds.Rounds,
        pools: Callable[[], Collection[str]],
    ) -> None:
        self._api = api
        self._ledger = book
        self._fleet = workers
        self._rounds = turns
        self._pools = pools

    def look(self) -> None:
        """Look whether anything can go on, now and then.

        Raises:
            errors.ApiError: the API could not be asked.
        """
        if not self._rounds.begin(LOOK, seconds=LOOK_SECONDS):
            return
        open_claims = self._ledger.open_claims()
        slots = self._fleet.slots()
        using = [claim for claim in open_claims if claim.stage is not claims.Stage.FINISHED]
        held = {claim.flow_run_id for claim in using}
        used = sum(claim.weight for claim in using)
        if not held or planning.free_slots(slots=slots, used=used):
            return
        if held <= child_runs.parents_of_waiting(self._api, held, self._pools()):
            if self._rounds.begin(WARNING, seconds=REMIND_SECONDS):
                logger.warning(planning.standstill(len(held)))
        else:
            self._rounds.hasten(WARNING)
