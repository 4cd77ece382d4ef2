"""Builds the Celery app and ties the dispatcher to the signals of its processes."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import socket
import sys
from typing import Any

from celery import Celery, signals
from celery import beat as celery_beat

import executors
from dispatcher import error_boundary, services, settings
from dispatcher.celery_app import (
    bootsteps,
    broker_outage,
    configuration,
    consumer,
    die_with_parent,
    dropped_messages,
    flower_defaults,
    log_setup,
    messenger,
    node_description,
    pool_exit,
    tasks,
    user_revokes,
)
from dispatcher.ledger import beat_reports
from dispatcher.reporting import run_logs


def create_app(options: settings.Settings) -> Celery:
    """Build the app for one set of settings; connects to nothing yet."""
    flower_defaults.apply(os.environ, sys.argv)
    app = Celery("dispatcher", set_as_current=True)
    app.conf.update(configuration.configuration(options))
    sender = messenger.CeleryMessenger(app)
    parts = services.Services(options, sender)
    dropped = dropped_messages.DroppedMessages()
    app.conf.worker_consumer = consumer.consumer_class(
        parts.stop_requests.request, lambda name: leave_fleet(parts, name), dropped
    )
    tasks.register(app, parts, ticks_late=configuration.is_amqp(options))
    bootsteps.install(app, parts, dropped)
    log_setup.install(options.log_format)
    run_logs.attach(parts.log_outbox.put)
    _connect_worker_signals(parts, sender)
    _connect_beat_signals(parts)
    return app


def leave_fleet(parts: services.Services, name: str) -> None:
    """Take this worker out of the fleet, which it reports itself to no more from here on."""
    with contextlib.suppress(*error_boundary.EXPECTED):
        parts.fleet.leave_for_good(f"{name}:{os.getpid()}")


def _connect_worker_signals(parts: services.Services, messages: messenger.CeleryMessenger) -> None:
    worker_pid = os.getpid()

    def check_queues(options: dict[str, Any], **_: Any) -> None:
        node_description.check_queues(options.get("queues"), parts.options.work_pools)

    def prepare_worker(sender: Any, **_: Any) -> None:
        nonlocal worker_pid
        worker_pid = os.getpid()
        node_description.choose_queues(sender, parts.options)
        parts.time_limits.soft, parts.time_limits.hard = sender.soft_time_limit, sender.time_limit
        die_with_parent.prepare_for_children()
        pool_exit.shorten_farewell()
        user_revokes.install(parts.revoked_runs.cancel)
        # Only the executor that is likely to be used: the others may bring large libraries along.
        executors.get_executor_class_from_type(parts.options.pool_type)
        # What is there now stays; a collector that looks at it would give each child its own copy.
        gc.collect()
        gc.freeze()

    def prepare_child(**_: Any) -> None:
        die_with_parent.end_if_orphaned(worker_pid)
        parts.wakes.install()
        gc.freeze()

    def start_control_work(sender: Any, **_: Any) -> None:
        if node_description.serves_control(sender):
            for pool in parts.options.work_pools:
                messages.send_tick(tasks.SYNC, pool)
                messages.send_tick(tasks.POLL, pool)

    def send_the_last(**_: Any) -> None:
        parts.event_outbox.close()
        parts.label_outbox.close()
        parts.log_outbox.close()

    # The one signal that comes before Celery looks at -Q, and ends with a traceback.
    signals.celeryd_init.connect(check_queues, weak=False)
    signals.worker_init.connect(prepare_worker, weak=False)
    signals.worker_process_init.connect(prepare_child, weak=False)
    signals.worker_ready.connect(start_control_work, weak=False)
    signals.worker_process_shutdown.connect(send_the_last, weak=False)
    signals.worker_shutdown.connect(send_the_last, weak=False)


def _connect_beat_signals(parts: services.Services) -> None:
    host = socket.gethostname()
    lifetime = max(beat_reports.LIFETIME, 3 * parts.options.cancel_interval)
    outage = broker_outage.BrokerOutage()

    def report(**_: Any) -> None:
        outage.end()
        parts.beats.report(host, lifetime_seconds=lifetime)

    def report_beat(**_: Any) -> None:
        signals.after_task_publish.connect(report, weak=False)
        logging.getLogger(celery_beat.__name__).addFilter(outage)

    def die_with_worker(**_: Any) -> None:
        die_with_parent.die_with_parent()

    signals.beat_init.connect(report_beat, weak=False)
    signals.beat_embedded_init.connect(report_beat, weak=False)
    signals.beat_embedded_init.connect(die_with_worker, weak=False)
