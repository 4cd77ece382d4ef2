"""The part of a worker that receives messages, where it does otherwise than Celery's."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable
from typing import Any

from celery.worker import consumer

from dispatcher.celery_app import dropped_messages, envelopes, execute_request, refusals

# How long an event of a task may wait for others to go with it. Celery would send those of each
# turn of its loop at once, which costs the worker's main process more than all else it does.
EVENTS_WAIT = 0.25  # seconds
# How often a worker looks for a broker that is away.
RECONNECT_SECONDS = 2.0
# It declares some dozens of queues on RabbitMQ, for tasks that are to begin later.
DELAYED_DELIVERY = ":DelayedDelivery"


def consumer_class(
    stop_tasks: Callable[[], None],
    leave: Callable[[str], None],
    dropped: dropped_messages.DroppedMessages,
    *,
    celery_consumer: type[Any] = consumer.Consumer,
    monotonic: Callable[[], float] = time.monotonic,
) -> type[consumer.Consumer]:
    """Make the class for workers of an app, as Celery's setting ``worker_consumer`` takes it.

    ``stop_tasks`` has the tasks of this very process stop their jobs; ``leave`` has a worker, by
    its name, get no more runs; ``dropped`` counts what no worker can make anything of.
    """

    class Consumer(refusals.WaitsWhenRefused, celery_consumer):  # type: ignore[misc] # as given
        """Flower hears of a task a moment later; and threads, too, stop in a hurry."""

        _flush_due_at = 0.0

        class Blueprint(celery_consumer.Blueprint):  # type: ignore[misc,name-defined] # as given
            """Nothing that the dispatcher sends is to be delivered later."""

            default_steps = [  # noqa: RUF012 - as Celery has it
                step
                for step in celery_consumer.Blueprint.default_steps
                if not str(step).endswith(DELAYED_DELIVERY)
            ]

        def on_send_event_buffered(self) -> None:
            """Celery calls this after each event of a task that has been put into the buffer."""
            now = monotonic()
            # By the clock: a lost connection takes the timers with it, and nothing says so.
            if self.hub and now >= self._flush_due_at:
                self._flush_due_at = now + EVENTS_WAIT
                self.hub.call_later(EVENTS_WAIT, self._flush_events)

        def ensure_connected(self, conn: Any) -> Any:
            """Celery waits two seconds longer before each new try; the runs that are due do not."""
            conn.ensure_connection = functools.partial(
                conn.ensure_connection, interval_step=0, interval_max=RECONNECT_SECONDS
            )
            careful = envelopes.careful(conn.get_transport_cls(), dropped.note)
            conn.get_transport_cls = lambda: careful
            return super().ensure_connected(conn)

        def create_task_handler(self, *args: Any, **options: Any) -> Callable[[Any], Any]:
            """Have Celery handle what is for it; anything else would end the worker."""
            receive = super().create_task_handler(*args, **options)
            return dropped.before(receive, self.connection_errors)

        def on_decode_error(self, message: Any, exc: Exception) -> None:
            """Celery calls this for what kombu cannot decode, and would show all of it."""
            why = f"it cannot be decoded ({type(exc).__name__})"
            dropped.drop(message, why, self.connection_errors)

        def cancel_active_requests(self) -> None:
            """Celery calls this in a cold shutdown, and fails where tasks are not processes."""
            # What they put back must not be meant for this very worker.
            leave(self.hostname)
            if execute_request.takes_signals(self.pool):
                super().cancel_active_requests()
            else:
                stop_tasks()

        def stop(self) -> Any:
            """Send the events that wait, then stop as Celery does."""
            self._flush_events()
            return super().stop()

    return Consumer
