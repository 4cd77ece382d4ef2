"""Sending and revoking the dispatcher's Celery tasks."""

from __future__ import annotations

from uuid import UUID

from celery import Celery

from dispatcher import claims, tasks, wakeups
from dispatcher.api import schemas


class CeleryMessenger:
    """Sends tasks and revokes them."""

    def __init__(self, app: Celery) -> None:
        self._app = app

    def send_execute(self, run: schemas.FlowRun, claim: claims.NewClaim, pool: str) -> None:
        """Send a claimed run to the workers; the message carries ids and nothing else."""
        self._app.send_task(
            tasks.EXECUTE,
            args=(str(run.id), str(claim.claim_id)),
            task_id=str(claim.claim_id),
            queue=tasks.RUNS_QUEUE,
            argsrepr=f"({run.name!r}, {pool!r})",
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
        self._app.control.revoke(str(claim_id), terminate=True, signal=wakeups.WAKE_SIGNAL.name)
