"""What a worker's main process keeps of an execute task that it has received."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from billiard.exceptions import Terminated, WorkerLostError
from celery.concurrency.base import BasePool
from celery.worker import request, state

from dispatcher import claims, losses


def request_class(
    lost: losses.Losses, wake: Callable[[], None], *, celery_request: type[Any] = request.Request
) -> type[request.Request]:
    """Make the class for execute tasks, as Celery lets its users extend it.

    ``wake`` cuts short the waits of the tasks of this very process.
    """

    class ExecuteRequest(celery_request):  # type: ignore[misc] # as given
        """Notes when the pool child that executes it has died, and wakes also a thread."""

        def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
            """Celery calls this for a child that was woken before as for one that it ended."""
            result = super().on_failure(exc_info, *args, **options)
            # Children that a cold shutdown ends report their runs themselves.
            if _is_loss(exc_info.exception) and not state.should_terminate:
                lost.note(claims.NewClaim(*map(UUID, self.args)), worker=self.hostname)
            return result

        def terminate(self, pool: Any, signal: Any = None) -> Any:
            """Celery calls this for a revoke, and fails where tasks are not processes."""
            if takes_signals(pool):
                return super().terminate(pool, signal)
            return wake()

    return ExecuteRequest


def takes_signals(pool: Any) -> bool:
    """Whether the tasks of a Celery pool are executed by processes of their own."""
    # Celery's prefork pool has its own from the moment it starts, not from its class.
    return getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job


def _is_loss(error: BaseException) -> bool:
    # As the pool has it, wrapped with its traceback.
    return isinstance(getattr(error, "exc", error), (WorkerLostError, Terminated))
