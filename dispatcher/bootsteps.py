"""What a Celery worker does besides tasks: it checks itself and reports its slots."""

from __future__ import annotations

import atexit
import contextlib
import logging
import os
import sys
from typing import Any

from celery import Celery, bootsteps, signals

import dispatcher
import executors
from dispatcher import (
    connections,
    errors,
    events,
    fleet,
    health,
    node,
    planning,
    services,
    stops,
    subscription,
    tasks,
)
from dispatcher.api import client, retry

# A worker that starts asks Prefect once, and is not kept from starting for longer than this.
CREDENTIALS_TIMEOUT = 3.0  # seconds

logger = logging.getLogger(__name__)


def install(app: Celery, parts: services.Services) -> None:
    """Add the steps to every worker of an app."""

    class ServeHealth(bootsteps.StartStopStep):
        """Answers health checks over HTTP, from before Redis is asked for anything."""

        requires = ("celery.worker.components:Pool",)

        def __init__(self, worker: Any, **_: Any) -> None:
            super().__init__(worker)
            check_size(worker)
            check_credentials(parts)
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
            def stop_consuming() -> None:
                consumer = parent.consumer
                consumer.call_soon(consumer.cancel_task_queue, tasks.RUNS_QUEUE)

            self._reporter = fleet.NodeReporter(
                parts.fleet,
                describe(parent),
                on_drain=stop_consuming,
                on_report=parts.observations.note,
            )
            self._reporter.start()
            self._events = events.NodeEvents(
                parts.worker_events,
                parts.catalog.pool,
                parts.options.work_pools,
                node=parent.hostname,
            )
            self._events.start()
            self._subscription = listen(parent, parts)

        def stop(self, _parent: Any) -> None:
            # First in a warm shutdown: from here on no new run is meant for this worker.
            stops.StopTimeout(parts.options.stop_timeout).begin()
            self._leave()

        def terminate(self, _parent: Any) -> None:
            self._leave()

        def _leave(self) -> None:
            self._reporter.stop()
            self._subscription.stop()
            self._events.stop()

    app.steps["worker"] |= {ServeHealth, JoinFleet, node_step(parts)}


def node_step(parts: services.Services) -> type[bootsteps.StartStopStep]:
    """Make the step for what executors need on a worker's node."""

    class ServeNode(bootsteps.StartStopStep):
        """Keeps it from before the pool's processes are there."""

        requires = ("celery.worker.components:Timer",)

        def __init__(self, worker: Any, **_: Any) -> None:
            super().__init__(worker)
            self.enabled = tasks.RUNS_QUEUE in queues_of(worker)

        def create(self, _worker: Any) -> Any:
            serve_node(parts)

    return ServeNode


def serve_node(parts: services.Services) -> None:
    """Start what executors keep on this node, to be ended when the worker's pool has ended."""
    api = hasty_api(parts)
    services_of_node = node.NodeServices(
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
        node_key=describe(worker).key,
        pools=parts.options.work_pools,
        poll_interval_seconds=parts.options.poll_interval,
    )


def listen(worker: Any, parts: services.Services) -> subscription.Subscription:
    """Hear from Prefect what there is to do, in a worker that serves control work."""
    if describe(worker).serves_control:
        parts.subscription.start()
    return parts.subscription


def check_size(worker: Any) -> None:
    """Refuse a worker whose runs could keep control work, and with it their own end, waiting."""
    try:
        describe(worker)
    except ValueError as error:
        sys.exit(f"dispatcher: {error}")


def check_credentials(parts: services.Services) -> None:
    """Refuse a worker whose credentials Prefect refuses: it could do nothing, whatever it waits.

    A Prefect API that is away is none of the worker's faults; its tasks find it when it is back.
    """
    api = hasty_api(parts)
    try:
        with contextlib.suppress(errors.ObjectNotFound):
            api.read_work_pool(parts.options.work_pools[0])
    except errors.AuthenticationFailed as error:
        sys.exit(f"dispatcher: {error}")
    except errors.ApiError as error:
        logger.warning("the worker starts without Prefect, and serves once it answers: %s", error)
    finally:
        api.transport.close()


def hasty_api(parts: services.Services) -> client.PrefectClient:
    """Make an API client for a worker that starts; to be closed."""
    return connections.connect_api(
        parts.options,
        timeout_seconds=CREDENTIALS_TIMEOUT,
        retry_policy=retry.RetryPolicy(max_attempts=1),
    )


def describe(worker: Any) -> fleet.Node:
    """The worker as the poller counts it.

    Raises:
        ValueError: it is too small for what it is to serve.
    """
    queues = queues_of(worker)
    control = tasks.CONTROL_QUEUE in queues
    return fleet.Node(
        name=worker.hostname,
        pid=os.getpid(),
        slots=planning.run_slots(
            concurrency=concurrency_of(worker),
            serves_control=control,
            serves_runs=tasks.RUNS_QUEUE in queues,
        ),
        serves_control=control,
        version=dispatcher.__version__,
    )


def concurrency_of(worker: Any) -> int:
    """How many tasks a worker executes at once, at the most."""
    if worker.pool_cls.__module__ == "celery.concurrency.solo":
        return 1
    return int(max(worker.concurrency, getattr(worker, "max_concurrency", None) or 0))


def queues_of(worker: Any) -> frozenset[str]:
    """The queues that a worker, or its consumer, consumes."""
    return frozenset(worker.app.amqp.queues.consume_from)


def serves_control(sender: Any) -> bool:
    """Whether the consumer that got ready serves control work."""
    return tasks.CONTROL_QUEUE in queues_of(sender)
