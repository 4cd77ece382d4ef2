"""Celery's remote control where a user revokes or terminates a flow run's task."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Collection, MutableMapping
from typing import Any, Protocol
from uuid import UUID

from celery.worker import control

from dispatcher import error_boundary
from dispatcher.execution import wake_signals

logger = logging.getLogger(__name__)

Handler = Callable[..., Any]


class CancelRuns(Protocol):
    """Cancels the runs of claims; those that are executed only if they are meant, too."""

    def __call__(self, claim_ids: Collection[UUID], *, running: bool) -> int:
        """Raises one of the expected errors if Prefect or Redis is away."""


class OnlyWakes:
    """The part of a worker's request that a revoke comes to; before Celery's own."""

    def terminate(self, pool: Any, signal: Any = None) -> Any:
        """Celery calls this; a user's has the run cancelled, which ends its processes in order."""
        if is_ours(signal):
            return super().terminate(pool, signal)  # type: ignore[misc] # of the request
        return None


def install(cancel: CancelRuns, handlers: MutableMapping[str, Handler] | None = None) -> None:
    """Have this worker cancel the runs of tasks that a user revokes, besides what Celery does.

    Our own revokes wake a task, and have a signal of their own by which they are known.
    """
    known = control.Panel.data if handlers is None else handlers
    known["revoke"] = _revoking(known["revoke"], cancel)
    known["terminate"] = _terminating(known["terminate"], cancel)


def is_ours(signal: object) -> bool:
    """Whether a revoke with this signal is a wake-up of the dispatcher's."""
    return str(signal) in {wake_signals.WAKE_SIGNAL.name, str(int(wake_signals.WAKE_SIGNAL))}


def _revoking(celerys: Handler, cancel: CancelRuns) -> Handler:
    def revoke(
        state: Any, task_id: Any, terminate: bool = False, signal: Any = None, **options: Any
    ) -> Any:
        answer = celerys(state, task_id, terminate=terminate, signal=signal, **options)
        if not is_ours(signal):
            _cancel_soon(task_id, cancel, running=bool(terminate))
        return answer

    return revoke


def _terminating(celerys: Handler, cancel: CancelRuns) -> Handler:
    def terminate(state: Any, signal: Any, task_id: Any, **options: Any) -> Any:
        answer = celerys(state, signal, task_id, **options)
        if not is_ours(signal):
            _cancel_soon(task_id, cancel, running=True)
        return answer

    return terminate


def _cancel_soon(task_ids: Any, cancel: CancelRuns, *, running: bool) -> None:
    """Cancel from a thread: the worker's main loop waits for nobody."""
    claim_ids = claim_ids_of(task_ids)
    if not claim_ids:
        return

    def work() -> None:
        try:
            cancel(claim_ids, running=running)
        except error_boundary.EXPECTED as error:
            logger.warning("a revoke of %s came to nothing: %s", task_ids, error)

    threading.Thread(target=work, name="user-revoke", daemon=True).start()


def claim_ids_of(task_ids: Any) -> set[UUID]:
    """The claims that some task ids may name, each being that of its task; others are skipped."""
    found = set()
    for task_id in [task_ids] if isinstance(task_ids, str) else task_ids or []:
        try:
            found.add(UUID(str(task_id)))
        except ValueError:
            continue
    return found
