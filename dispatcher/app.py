"""Builds the Celery app and ties the dispatcher to the signals of its processes."""

from __future__ import annotations

import gc
import logging
import os
import socket
from typing import Any

from celery import Celery, signals
from celery import beat as celery_beat

import executors
from dispatcher import (
    beats,
    bootsteps,
    celeryconfig,
    consumer,
    logs,
    messenger,
    parents,
    services,
    settings,
    tasks,
)


def create_app(options: settings.Settings) -> Celery:
    """Build the app for one set of settings; connects to nothing yet."""
    app = Celery("dispatcher", set_as_current=True)
    app.conf.update(celeryconfig.configuration(options))
    sender = messenger.CeleryMessenger(app)
    parts = services.Services(options, sender)
    app.conf.worker_consumer = consumer.consumer_class(parts.stop_requests.request)
    tasks.register(app, parts)
    bootsteps.install(app, parts)
    logs.install(options.log_format)
    logs.attach(parts.log_outbox.put)
    _connect_worker_signals(parts, sender)
    _connect_beat_signals(parts)
    return app


def _connect_worker_signals(parts: services.Services, messages: messenger.CeleryMessenger) -> None:
    worker_pid = os.getpid()

    def prepare_worker(**_: Any) -> None:
        nonlocal worker_pid
        worker_pid = os.getpid()
        parents.prepare_for_children()
        # Only the executor that is likely to be used: the others may bring large libraries along.
        executors.get_executor_class_from_type(parts.options.pool_type)
        # What is there now stays; a collector that looks at it would give each child its own copy.
        gc.collect()
        gc.freeze()

    def prepare_child(**_: Any) -> None:
        parents.end_if_orphaned(worker_pid)
        parts.wakes.install()
        gc.freeze()

    def start_control_work(sender: Any, **_: Any) -> None:
        if bootsteps.serves_control(sender):
            for pool in parts.options.work_pools:
                messages.send_tick(tasks.SYNC, pool)
                messages.send_tick(tasks.POLL, pool)

    def send_the_last(**_: Any) -> None:
        parts.event_outbox.close()
        parts.label_outbox.close()
        parts.log_outbox.close()

    signals.worker_init.connect(prepare_worker, weak=False)
    signals.worker_process_init.connect(prepare_child, weak=False)
    signals.worker_ready.connect(start_control_work, weak=False)
    signals.worker_process_shutdown.connect(send_the_last, weak=False)
    signals.worker_shutdown.connect(send_the_last, weak=False)


def _connect_beat_signals(parts: services.Services) -> None:
    host = socket.gethostname()
    lifetime = max(beats.LIFETIME, 3 * parts.options.cancel_interval)
    outage = beats.BrokerOutage()

    def report(**_: Any) -> None:
        outage.end()
        parts.beats.report(host, lifetime_seconds=lifetime)

    def report_beat(**_: Any) -> None:
        signals.after_task_publish.connect(report, weak=False)
        logging.getLogger(celery_beat.__name__).addFilter(outage)

    def die_with_worker(**_: Any) -> None:
        parents.die_with_parent()

    signals.beat_init.connect(report_beat, weak=False)
    signals.beat_embedded_init.connect(report_beat, weak=False)
    signals.beat_embedded_init.connect(die_with_worker, weak=False)
