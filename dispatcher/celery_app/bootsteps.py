"""What a Celery worker does besides tasks: it checks itself and reports its slots."""

from __future__ import annotations

import atexit
import contextlib
import logging
import sys
from collections.abc import Sequence
from typing import Any

from celery import Celery, bootsteps, signals
from kombu import Queue

import executors
from dispatcher import error_boundary, errors, services
from dispatcher.celery_app import (
    dropped_messages,
    node_description,
    start_checks,
    tasks,
    thread_pool,
)
from dispatcher.execution import node_services, stop_requests
from dispatcher.ledger import fleet
from dispatcher.operations import health
from dispatcher.polling import subscription
from dispatcher.reporting import worker_events

logger = logging.getLogger(__name__)


def install(
    app: Celery, parts: services.Services, dropped: dropped_messages.DroppedMessages
) -> None:
    """Add the steps to every worker of an app."""

    class ServeHealth(bootsteps.StartStopStep):
        """Answers health checks over HTTP, from before Redis is asked for anything."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker: Any, **_: Any) -> None:
            super().__init__(worker)
            start_checks.run(worker, parts)
            self.enabled = parts.options.health_port is not None

        def create(self, worker: Any) -> Any:
            assert parts.options.health_port is not None
            self._health = watch_health(worker, parts)
            try:
                return health.HealthServer(
                    self._health, host=parts.options.health_host, port=parts.options.health_port
                )
            except errors.SettingsError as error:
                sys.exit(f"dispatcher: {error}")

        def stop(self, _parent: Any) -> None:
            # It answers until the process ends, so that nobody ends it over the runs it finishes.
            self._health.retire()

    class JoinFleet(bootsteps.StartStopStep):
        """Reports the worker's slots from the moment its pool is there."""

        requires = (ServeHealth, "celery.worker.components:Pool")

        def start(self, parent: Any) -> None:
            thread_pool.make_resizable(parent.pool)
            self._reporter = fleet.NodeReporter(
                parts.fleet,
                node_description.Describer(parent, parts.run_places, parts.options, dropped),
                on_drain=lambda: cancel_run_queues(parent.consumer, parts.options.work_pools),
                on_report=lambda: note_report(parent.app, parts),
            )
            self._reporter.start()
            self._events = worker_events.NodeEvents(
                parts.worker_events,
                parts.catalog.pool,
                parts.options.work_pools,
                node=parent.hostname,
            )
            self._events.start()
            self._subscriptions = listen(parent, parts)

        def stop(self, _parent: Any) -> None:
            # First in a warm shutdown: from here on no new run is meant for this worker.
            stop_requests.StopTimeout(parts.options.stop_timeout).begin()
            self._leave()

        def terminate(self, _parent: Any) -> None:
            self._leave()

        def _leave(self) -> None:
            self._reporter.stop()
            stop_listening(self._subscriptions)
            self._events.stop()

    app.steps["worker"] |= {ServeHealth, JoinFleet, node_step(parts)}


def note_report(app: Celery, parts: services.Services) -> None:
    """Say that the ledger is there, and take away the queues of workers that have gone for good."""
    parts.observations.note()
    for node in parts.fleet.gone_for_good():
        # They are in nobody's way, so a broker that is away is no reason to try again.
        with (
            contextlib.suppress(*error_boundary.EXPECTED),
            app.connection_for_write() as connection,
        ):
            left = Queue(tasks.node_queue(node), channel=connection.default_channel)
            left.purge()  # kombu takes away no queue of Redis that is bound to nothing
            left.delete()


def cancel_run_queues(consumer: Any, pools: Sequence[str]) -> None:
    """Have a worker take no new runs; what is meant for it by now, it still takes."""
    for queue in (tasks.RUNS_QUEUE, *map(tasks.pool_queue, pools)):
        consumer.call_soon(consumer.cancel_task_queue, queue)


def node_step(parts: services.Services) -> type[bootsteps.StartStopStep]:
    """Make the step for what executors need on a worker's node."""

    class ServeNode(bootsteps.StartStopStep):
        """Keeps it from before the pool's processes are there."""

        requires = ("celery.worker.components:Timer",)

        def __init__(self, worker: Any, **_: Any) -> None:
            super().__init__(worker)
            self.enabled = bool(node_description.served_pools(worker, parts.options.work_pools))

        def create(self, _worker: Any) -> Any:
            serve_node(parts)

    return ServeNode


def serve_node(parts: services.Services) -> None:
    """Start what executors keep on this node, to be ended when the worker's pool has ended."""
    api = start_checks.hasty_api(parts)
    services_of_node = node_services.NodeServices(
        options=parts.options,
        executor_types=executors.get_all_available_executor_types,
        find_executor=executors.get_executor_class_from_type,
        read_pool=api.read_work_pool,
    )
    try:
        services_of_node.enter()
    finally:
        api.transport.close()
    # Steps are stopped before the pool is; and a cold shutdown sends no signal.
    signals.worker_shutdown.connect(lambda **_: services_of_node.leave(), weak=False)
    atexit.register(services_of_node.leave)


def watch_health(worker: Any, parts: services.Services) -> health.WorkerHealth:
    """What a worker says of its own health."""
    return health.WorkerHealth(
        record=parts.polls,
        workers=parts.fleet,
        node_key=node_description.describe(worker, parts.options).key,
        pools=parts.options.work_pools,
        poll_interval_seconds=parts.options.poll_interval,
    )


def listen(worker: Any, parts: services.Services) -> Sequence[subscription.Subscription]:
    """Hear from Prefect what there is to do, in a worker that serves control work."""
    if not node_description.serves_control(worker):
        return ()
    for each in parts.subscriptions:
        each.start()
    return parts.subscriptions


def stop_listening(subscriptions: Sequence[subscription.Subscription]) -> None:
    """Leave it to another worker; may be called again."""
    for each in subscriptions:
        each.stop()
