"""Pool children that die: their worker knows at once, and nobody has to wait for their leases."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

from billiard.exceptions import Terminated, WorkerLostError
from celery.worker import request, state

from dispatcher import claims, ticks

logger = logging.getLogger(__name__)


class Losses:
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
        except ticks.EXPECTED as error:
            extra = {"flow_run_id": claim.flow_run_id}
            logger.warning(
                "flow run %s has lost its pool process and waits for its lease to run out: %s",
                claim.flow_run_id,
                error,
                extra=extra,
            )


def request_class(
    lost: Losses, *, celery_request: type[Any] = request.Request
) -> type[request.Request]:
    """What a worker's main process keeps of an execute task, as Celery lets its users extend it."""

    class ExecuteRequest(celery_request):  # type: ignore[misc] # as given
        """Notes when the pool child that executes it has died."""

        def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
            """Celery calls this for a child that was woken before as for one that it ended."""
            result = super().on_failure(exc_info, *args, **options)
            # Children that a cold shutdown ends report their runs themselves.
            if _is_loss(exc_info.exception) and not state.should_terminate:
                lost.note(claims.NewClaim(*map(UUID, self.args)), worker=self.hostname)
            return result

    return ExecuteRequest


def _is_loss(error: BaseException) -> bool:
    # As the pool has it, wrapped with its traceback.
    return isinstance(getattr(error, "exc", error), (WorkerLostError, Terminated))
