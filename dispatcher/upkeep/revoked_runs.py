"""Runs whose tasks somebody revokes through Celery, by Flower's buttons for example."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection
from uuid import UUID

from dispatcher import errors
from dispatcher.ledger import claims, locks
from dispatcher.prefect_api import client, schemas

# Every worker hears of a revoke; the others leave it to the first one for so long.
LOCK_SECONDS = 10.0
CANCELLING = schemas.StateProposal(
    type=schemas.StateType.CANCELLING, name="Cancelling", message="Cancelled through Celery."
)

logger = logging.getLogger(__name__)


class RevokedRuns:
    """Cancels the runs of revoked tasks as Prefect's user interface does.

    ``hasten`` has somebody look now for what is to be cancelled in a pool.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        mutex: locks.Locks,
        hasten: Callable[[str], None],
    ) -> None:
        self._api = api
        self._ledger = book
        self._locks = mutex
        self._hasten = hasten

    def cancel(self, claim_ids: Collection[UUID], *, running: bool) -> int:
        """Cancel the runs of some claims; of those that are executed only with ``running``.

        Returns how many there were that no other worker has cancelled.

        Raises:
            errors.ApiError, redis.RedisError: one of them is away; nothing comes of the revoke.
        """
        meant = [
            claim
            for claim in self._ledger.open_claims()
            if claim.claim_id in claim_ids and (running or claim.stage is not claims.Stage.HELD)
        ]
        return sum(self._cancel(claim) for claim in meant)

    def _cancel(self, claim: claims.Claim) -> bool:
        with self._locks.hold(f"revoke:{claim.claim_id}", lease_seconds=LOCK_SECONDS) as held:
            if not held:
                return False
            try:
                self._api.set_flow_run_state(claim.flow_run_id, CANCELLING)
            except errors.ObjectNotFound:
                return False
            logger.info("flow run %s is to be cancelled through Celery", claim.flow_run_id)
        self._hasten(claim.pool)
        return True
