"""What a worker's main process keeps of an execute task that it has received."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any
from uuid import UUID

from billiard.exceptions import Terminated, WorkerLostError
from celery.concurrency.base import BasePool
from celery.worker import request, state

from dispatcher.celery_app import lost_children, task_events, user_revokes
from dispatcher.execution import run_places, time_limits
from dispatcher.ledger import claims

logger = logging.getLogger(__name__)


# How Celery is asked to send no event of its own for a failure.
UNTOLD = {"send_failed_event": False}


def request_class(
    lost: lost_children.LostChildren,
    wake: Callable[[], None],
    limits: time_limits.TimeLimits,
    places: run_places.RunPlaces,
    *,
    celery_request: type[Any] = request.Request,
) -> type[request.Request]:
    """Make the class for execute tasks, as Celery lets its users extend it.

    ``wake`` cuts short the waits of the tasks of this very process.
    """

    class Request(celery_request):  # type: ignore[misc] # as given
        """Notes when the pool child that executes it has died, and wakes also a thread."""

        def revoked(self) -> bool:
            """Celery calls this last before the pool gets the task.

            One that finds no place is forgotten here, and sent again by recovery after a while.
            """
            return super().revoked() or forgotten(self, places)

        def on_failure(self, exc_info: Any, *args: Any, **options: Any) -> Any:
            """Celery calls this for a child that was woken before as for one that it ended."""
            is_loss = _is_loss(exc_info.exception)
            # What became of a run that is lost, recovery tells, and after all that waits here.
            options |= UNTOLD if is_loss else {}
            result = super().on_failure(exc_info, *args, **options)
            # Children that a cold shutdown ends report their runs themselves.
            if is_loss and not state.should_terminate:
                tell_what_waits(self)
                lost.note(claims.NewClaim(*map(UUID, self.args)), worker=self.hostname)
            return result

        @property
        def time_limits(self) -> tuple[float | None, float | None]:
            """Celery gives these, hard and soft, to the pool; they win over the pool's own."""
            return limits.backstop, limits.first

        @time_limits.setter
        def time_limits(self, _of_the_message: object) -> None:
            """Celery keeps those of a message here; none of ours has any."""

        def on_timeout(self, soft: bool, timeout: float) -> None:
            """Celery calls this at a limit; for a soft one the task says itself what it means."""
            if not soft:
                super().on_timeout(soft, timeout)
                lost.note(claims.NewClaim(*map(UUID, self.args)), worker=self.hostname)

        def terminate(self, pool: Any, signal: Any = None) -> Any:
            """Celery calls this for a revoke, and fails where tasks are not processes."""
            if takes_signals(pool):
                return super().terminate(pool, signal)
            return wake()

    class ExecuteRequest(task_events.TellsTheEnd, user_revokes.OnlyWakes, Request):
        """What others hear of it, and what users do to it, comes first."""

    return ExecuteRequest


def tell_what_waits(request: Any) -> None:
    """Send the events that a worker has gathered, where it sends any."""
    if request.eventer is not None:
        request.eventer.flush()


def forgotten(asked: Any, places: run_places.RunPlaces) -> bool:
    """Whether there is no place for a request, which is then forgotten."""
    in_pool = [
        each
        for each in state.reserved_requests
        if each.type == asked.type and each is not asked and each._apply_result is not None
    ]
    if places.has_room(len(in_pool)):
        return False
    logger.warning(
        "flow run %s is left to other workers: this one keeps a place for control work",
        asked.args[0],
    )
    asked.acknowledge()
    state.task_ready(asked)
    return True


def takes_signals(pool: Any) -> bool:
    """Whether the tasks of a Celery pool are executed by processes of their own."""
    # Celery's prefork pool has its own from the moment it starts, not from its class.
    return getattr(pool.terminate_job, "__func__", None) is not BasePool.terminate_job


def _is_loss(error: BaseException) -> bool:
    # As the pool has it, wrapped with its traceback.
    return isinstance(getattr(error, "exc", error), (WorkerLostError, Terminated))
