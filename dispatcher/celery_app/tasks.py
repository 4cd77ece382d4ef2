"""The Celery tasks; what each does is in the module of the same matter."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from celery import Celery, Task

from dispatcher import error_boundary, services
from dispatcher.celery_app import execute_request, lost_children, task_events
from dispatcher.ledger import claims

POLL = "dispatcher.poll"
EXECUTE = "dispatcher.execute"
CANCEL = "dispatcher.cancel"
RECOVER = "dispatcher.recover"
SYNC = "dispatcher.sync"

CONTROL_QUEUE = "dispatcher.control"
RUNS_QUEUE = "dispatcher.runs"

# The header of a tick of beat that says how many seconds lie between two of its kind.
INTERVAL = "tick_interval"


def pool_queue(pool: str) -> str:
    """The queue that a worker consumes to serve one work pool, as ``-Q`` names it."""
    return f"{RUNS_QUEUE}.{pool}"


def node_queue(node: str) -> str:
    """The queue of a Celery worker alone, for runs that take its slots."""
    return f"dispatcher.node.{node}"


def register(app: Celery, parts: services.Services, *, ticks_late: bool = False) -> None:
    """Make the tasks known to this app, and to no other one of the process.

    ``ticks_late``: a tick is acknowledged when it has been done. Where a broker hands out as many
    messages as a worker has places, those of a busy one would wait there while others are free.
    """
    tick = error_boundary.Ticks(parts.served_pools.includes, parts.rounds.begin_tick)
    # Built now, before there are threads that could build them twice; nothing connects yet.
    poller, canceller, recoverer = parts.poller, parts.canceller, parts.recoverer
    slot_watch, pool_sync, execution = parts.slot_watch, parts.pool_sync, parts.execution

    # Ticks come and go by the thousand: in Flower they would only hide the runs.
    quiet: dict[str, Any] = {"shared": False, "send_events": False, "acks_late": ticks_late}

    @app.task(name=POLL, bind=True, **quiet)
    def poll(self: Task[Any, Any], /, pool: str) -> str | None:
        return tick.run("poll", pool, lambda: poller.poll(pool), interval=interval(self))

    @app.task(name=CANCEL, **quiet)
    def cancel(pool: str) -> str | None:
        return tick.run("cancel", pool, canceller.cancel)

    def look_after() -> int:
        recovered = recoverer.recover()
        slot_watch.look()
        return recovered

    @app.task(name=RECOVER, **quiet)
    def recover(pool: str) -> str | None:
        return tick.run("recover", pool, look_after)

    @app.task(name=SYNC, bind=True, **quiet)
    def sync(self: Task[Any, Any], /, pool: str) -> str | None:
        return tick.run("sync", pool, lambda: pool_sync.sync(pool), interval=interval(self))

    lost = lost_children.LostChildren(parts.ledger, parts.hasten_recovery)

    kept = execute_request.request_class(
        lost, parts.wakes.wake_all, parts.time_limits, parts.run_places
    )

    @app.task(name=EXECUTE, shared=False, bind=True, Request=kept)
    def execute(self: Task[Any, str], /, flow_run_id: str, claim_id: str, **_later: Any) -> str:
        # The arguments come from the broker, so they only name a claim; the ledger has the rest.
        # A worker of a later version may say more.
        claim = claims.NewClaim(UUID(flow_run_id), UUID(claim_id))
        worker = str(self.request.hostname)
        # Not only while it executes: a process that is stopped in a hurry ends here.
        with parts.stop_requests.held_back():
            end = error_boundary.run_claim(
                flow_run_id, lambda: execution.execute(claim, worker=worker)
            )
            told = task_events.explain(end, lambda: parts.reporter.glance(claim.flow_run_id))
            if parts.stop_requests.requested:
                # And Celery listens to none of its tasks any more.
                parts.messenger.tell_end(claim.claim_id, told)
        return told


def interval(task: Task[Any, Any]) -> float:
    """Of a tick of beat, the seconds until the next one like it; 0 for other tasks."""
    return float((task.request.headers or {}).get(INTERVAL, 0.0))
