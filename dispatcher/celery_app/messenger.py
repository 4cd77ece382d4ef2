"""Sending and revoking the dispatcher's Celery tasks."""

from __future__ import annotations

import contextlib
from typing import Any
from uuid import UUID

from celery import Celery
from kombu import Queue

from dispatcher import error_boundary
from dispatcher.celery_app import task_events, tasks
from dispatcher.execution import wake_signals
from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas

# It is a label of Flower's metrics and a column of its page.
TITLE_CHARACTERS = 120


class CeleryMessenger:
    """Sends tasks and revokes them."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send_execute(
        self,
        run: schemas.FlowRun,
        claim: claims.NewClaim,
        pool: str,
        *,
        attempt: int,
        node: str = claims.ANYBODY,
        title: str = "",
        page: str = "",
    ) -> None:
        """Send a claimed run to a worker; the message carries ids, and names to be shown.

        ``title`` is what Celery and Flower show in place of the task's name, ``page`` where the run
        is in Prefect's user interface.
        """
        shown = {"attempt": attempt, **({"page": page} if page else {})}
        self._app.send_task(
            tasks.EXECUTE,
            args=(str(run.id), str(claim.claim_id)),
            task_id=str(claim.claim_id),
            **_address(node),
            shadow=title[:TITLE_CHARACTERS] or None,
            argsrepr=f"({run.name!r}, {pool!r})",
            kwargsrepr=repr(shown),
            ignore_result=True,
        )

    def send_poll(self, pool: str) -> None:
        """Ask for a poll now."""
        self.send_tick(tasks.POLL, pool)

    def send_cancel(self, pool: str) -> None:
        """Ask for a look for runs to cancel now."""
        self.send_tick(tasks.CANCEL, pool)

    def send_recover(self, pool: str) -> None:
        """Ask for a look at what nobody takes care of now."""
        self.send_tick(tasks.RECOVER, pool)

    def send_tick(self, task: str, pool: str) -> None:
        """Ask for one piece of control work now."""
        self._app.send_task(task, args=(pool,), queue=tasks.CONTROL_QUEUE, ignore_result=True)

    def revoke(self, claim_id: UUID) -> None:
        """Discard a claim's task if it waits, wake it if it runs; may be lost on the way."""
        self._app.control.revoke(
            str(claim_id), terminate=True, signal=wake_signals.WAKE_SIGNAL.name
        )

    def tell_end(self, claim_id: UUID, end: str) -> None:
        """Tell whoever watches how an execution ended whose worker cannot.

        In the name of the worker that executes the current task: Celery knows no other sender.
        For eyes only, so a broker that is away disturbs nothing.
        """
        task = self._app.current_worker_task
        if task is None:
            return
        kind, fields = task_events.event_of(end)
        events = self._app.events
        with (
            contextlib.suppress(*error_boundary.EXPECTED),
            events.default_dispatcher(hostname=task.request.hostname) as dispatcher,
        ):
            dispatcher.send(kind, uuid=str(claim_id), **fields)


def _address(node: str) -> dict[str, Any]:
    if node == claims.ANYBODY:
        return {"queue": tasks.RUNS_QUEUE}
    # Declared by the worker itself; by the exchange without a name, which every broker has.
    return {"queue": Queue(tasks.node_queue(node)), "declare": []}
