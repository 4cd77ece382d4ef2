"""Pool children that die: their worker knows at once, and nobody has to wait for their leases."""

from __future__ import annotations

import logging
from collections.abc import Callable

from dispatcher import error_boundary
from dispatcher.ledger import claims

logger = logging.getLogger(__name__)


class LostChildren:
    """Gives up the claims of pool children that have died.

    ``recover`` asks for a look after a work pool now.
    """

    def __init__(self, book: claims.Ledger, recover: Callable[[str], None]) -> None:
        self._ledger = book
        self._recover = recover

    def note(self, claim: claims.NewClaim, *, worker: str) -> None:
        """Note that the child of a Celery worker that executed a claim is dead.

        Without Redis nothing happens: the lease runs out.
        """
        try:
            pool = self._ledger.forfeit(claim, node=worker)
            if pool is not None:
                self._recover(pool)
        except error_boundary.EXPECTED as error:
            extra = {"flow_run_id": claim.flow_run_id}
            logger.warning(
                "flow run %s has lost its pool process and waits for its lease to run out: %s",
                claim.flow_run_id,
                error,
                extra=extra,
            )
