"""The Celery tasks; what each does is in the module of the same matter."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from celery import Celery, Task

from dispatcher import claims, losses, requests, services, ticks

POLL = "dispatcher.poll"
EXECUTE = "dispatcher.execute"
CANCEL = "dispatcher.cancel"
RECOVER = "dispatcher.recover"
SYNC = "dispatcher.sync"

CONTROL_QUEUE = "dispatcher.control"
RUNS_QUEUE = "dispatcher.runs"


def register(app: Celery, parts: services.Services) -> None:
    """Make the tasks known to this app, and to no other one of the process."""
    tick = ticks.Ticks(parts.options.work_pools)
    # Built now, before there are threads that could build them twice; nothing connects yet.
    poller, canceller, recoverer = parts.poller, parts.canceller, parts.recoverer
    pool_sync, execution = parts.pool_sync, parts.execution

    # Ticks come and go by the thousand: in Flower they would only hide the runs.
    quiet: dict[str, Any] = {"shared": False, "send_events": False}

    @app.task(name=POLL, **quiet)
    def poll(pool: str) -> str | None:
        return tick.run("poll", pool, lambda: poller.poll(pool))

    @app.task(name=CANCEL, **quiet)
    def cancel(pool: str) -> str | None:
        return tick.run("cancel", pool, lambda: canceller.cancel(pool))

    @app.task(name=RECOVER, **quiet)
    def recover(pool: str) -> str | None:
        return tick.run("recover", pool, lambda: recoverer.recover(pool))

    @app.task(name=SYNC, **quiet)
    def sync(pool: str) -> str | None:
        return tick.run("sync", pool, lambda: pool_sync.sync(pool))

    lost = losses.Losses(parts.ledger, parts.messenger.send_recover)

    kept = requests.request_class(lost, parts.wakes.wake_all)

    @app.task(name=EXECUTE, shared=False, bind=True, Request=kept)
    def execute(self: Task[Any, str], /, flow_run_id: str, claim_id: str, **_later: Any) -> str:
        # The arguments come from the broker, so they only name a claim; the ledger has the rest.
        # A worker of a later version may say more.
        claim = claims.NewClaim(UUID(flow_run_id), UUID(claim_id))
        worker = str(self.request.hostname)
        return ticks.run_claim(flow_run_id, lambda: execution.execute(claim, worker=worker))
