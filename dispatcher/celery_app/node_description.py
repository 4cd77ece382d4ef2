"""What a Celery worker is in the fleet, and how many runs it takes now.

Celery lets people change that while a worker works: they grow and shrink its pool, have it consume
a queue no more, limit the rate of a task. All of it is read anew for each report.
"""

from __future__ import annotations

import contextlib
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from celery.worker import state
from kombu import Exchange, Queue

import dispatcher
from dispatcher import planning, settings
from dispatcher.celery_app import configuration, dropped_messages, tasks
from dispatcher.execution import run_places
from dispatcher.ledger import fleet
from dispatcher.prefect_api import ui_links


def describe(worker: Any, options: settings.Settings) -> fleet.Node:
    """The worker as the poller counts it now.

    Raises:
        ValueError: it is too small for what it is to serve.
    """
    pools = served_pools(worker, options.work_pools)
    slots = planning.run_slots(
        concurrency=concurrency_of(worker),
        serves_control=serves_control(worker),
        serves_runs=bool(pools),
    )
    limited = rate_limited(worker, slots)
    held_up = f"its rate is limited to {rate_of(worker)}" if limited < slots else ""
    node = _node(worker, min(slots, limited), held_up)
    return replace(
        node,
        pools=pools,
        work_queues=options.work_queues,
        worker_name=options.worker_name,
        prefect=ui_links.without_credentials(options.prefect_api_url),
    )


def served_pools(worker: Any, pools: Sequence[str]) -> tuple[str, ...]:
    """Those of the work pools whose runs a worker takes, by the queues that it consumes."""
    queues = queues_of(worker)
    every = tasks.RUNS_QUEUE in queues
    return tuple(sorted(pool for pool in pools if every or tasks.pool_queue(pool) in queues))


def check_queues(chosen: str | Sequence[str] | None, pools: Sequence[str]) -> None:
    """Refuse a worker that is told by ``-Q`` to consume what is no queue of the dispatcher."""
    known = [tasks.CONTROL_QUEUE, tasks.RUNS_QUEUE, *map(tasks.pool_queue, pools)]
    names = chosen.split(",") if isinstance(chosen, str) else chosen or ()
    unknown = [name for name in names if name not in known]
    if unknown:
        sys.exit(
            f"dispatcher: there is no queue {', '.join(unknown)} for -Q; name some of"
            f" {', '.join(known)}, or add the work pool to DISPATCHER_WORK_POOLS"
        )


def choose_queues(worker: Any, options: settings.Settings) -> None:
    """Add the worker's own queue to those that it consumes, which is where its runs are sent.

    Without ``-Q``, leave out the queues of single pools: they would only repeat the one for all.
    """
    queues = worker.app.amqp.queues
    if queues._consume_from is None:
        queues.deselect([tasks.pool_queue(pool) for pool in options.work_pools])
    own = tasks.node_queue(worker.hostname)
    arguments = configuration.queue_arguments(options)
    queues.select_add(Queue(own, routing_key=own, queue_arguments=arguments))
    # Not before, or Celery would put its own in place of one without a name, and bind to it.
    queues[own].exchange = Exchange("", type="direct")


class Describer:
    """Describes a worker that its users may change at any time, and keeps its ``places`` right."""

    def __init__(
        self,
        worker: Any,
        places: run_places.RunPlaces,
        options: settings.Settings,
        dropped: dropped_messages.DroppedMessages,
    ) -> None:
        self._worker = worker
        self._places = places
        self._options = options
        self._dropped = dropped
        self._run_queues = self._consumed()
        self._own_queue = tasks.node_queue(worker.hostname)
        self._had_own_queue = False

    def __call__(self) -> fleet.Node:
        """The worker now; without slots if nothing is left of them."""
        return replace(self._describe(), dropped=self._dropped.count)

    def _describe(self) -> fleet.Node:
        self._places.limit = None
        if serves_control(self._worker):
            self._places.limit = concurrency_of(self._worker) - 1
        try:
            node = describe(self._worker, self._options)
        except ValueError:
            # Its pool was shrunk: one place, and control work comes first.
            return _node(self._worker, 0, "its pool has one place, which is kept for control work")
        has_own_queue = self._own_queue in queues_of(self._worker)
        self._had_own_queue |= has_own_queue
        if self._had_own_queue and not has_own_queue:
            return _node(self._worker, 0, f"it does not consume {self._own_queue}")
        if self._run_queues and not node.pools:
            return replace(node, held_up=f"it does not consume {', '.join(self._run_queues)}")
        self._run_queues = self._consumed() or self._run_queues
        return node

    def _consumed(self) -> list[str]:
        consumed = queues_of(self._worker)
        every = [tasks.RUNS_QUEUE, *map(tasks.pool_queue, self._options.work_pools)]
        return [queue for queue in every if queue in consumed]


def concurrency_of(worker: Any) -> int:
    """How many tasks a worker executes at once, at the most."""
    if worker.pool_cls.__module__ == "celery.concurrency.solo":
        return 1
    autoscaler = getattr(worker, "autoscaler", None)
    if autoscaler is not None:
        return int(autoscaler.max_concurrency)
    # A worker that starts has no pool, or one that has not its processes yet.
    with contextlib.suppress(AttributeError):
        return int(worker.pool.num_processes)
    return int(max(worker.concurrency, getattr(worker, "max_concurrency", None) or 0))


def rate_of(worker: Any) -> str:
    """The rate limit of runs that somebody has set, as Celery writes it; empty without one."""
    return str(getattr(worker.app.tasks.get(tasks.EXECUTE), "rate_limit", None) or "")


def rate_limited(worker: Any, slots: int) -> int:
    """How many slots a rate limit leaves: those that are taken, and one if a run may begin now."""
    buckets = getattr(getattr(worker, "consumer", None), "task_buckets", {})
    bucket = buckets.get(tasks.EXECUTE)
    if bucket is None:
        return slots
    waiting = len(bucket.contents)
    return _executing() + waiting + (0 if waiting or not _has_token(bucket) else 1)


def queues_of(worker: Any) -> frozenset[str]:
    """The queues that a worker, or its consumer, consumes."""
    return frozenset(worker.app.amqp.queues.consume_from)


def serves_control(sender: Any) -> bool:
    """Whether the consumer that got ready serves control work."""
    return tasks.CONTROL_QUEUE in queues_of(sender)


def _node(worker: Any, slots: int, held_up: str) -> fleet.Node:
    return fleet.Node(
        name=worker.hostname,
        pid=os.getpid(),
        slots=slots,
        serves_control=serves_control(worker),
        version=dispatcher.__version__,
        held_up=held_up,
        pools=(),
    )


def _has_token(bucket: Any) -> bool:
    # Read only: the bucket itself may be asked by its worker's main thread alone.
    since = time.monotonic() - bucket.timestamp
    return bool(min(bucket.capacity, bucket._tokens + bucket.fill_rate * since) >= 1)


def _executing() -> int:
    try:
        reserved = tuple(state.reserved_requests)
    except RuntimeError:
        # The main thread has just received one; the next report counts it.
        return 0
    return sum(request.type == tasks.EXECUTE for request in reserved)
