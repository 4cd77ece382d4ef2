"""Celery's settings. Most keep one of its habits on Redis from losing or doubling a run."""

from __future__ import annotations

from typing import Any
from urllib import parse

from celery.schedules import schedule
from kombu import Exchange, Queue

from dispatcher import settings
from dispatcher.celery_app import tasks

# The same in every process on one Redis, since the smallest one counts for all. No claim depends
# on it: messages are acknowledged before their task begins, and a second delivery is refused.
VISIBILITY_TIMEOUT = 3600  # seconds


def configuration(options: settings.Settings) -> dict[str, Any]:
    """Celery's settings for one set of ours."""
    url = celery_url(options.redis_url.get_secret_value())
    return {
        "broker_url": url,
        "result_backend": url,
        "broker_transport_options": {
            "visibility_timeout": VISIBILITY_TIMEOUT,
            "unacked_restore_interval": 5,
            "unacked_restore_throttle": 1,
            # Control work first, wherever one worker serves both queues.
            "queue_order_strategy": "priority",
            "health_check_interval": 10,
            "socket_timeout": 10,
            "socket_connect_timeout": 5,
        },
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Those of single pools are for workers that name them with -Q.
        "task_queues": [
            _queue(name)
            for name in (
                tasks.CONTROL_QUEUE,
                tasks.RUNS_QUEUE,
                *map(tasks.pool_queue, options.work_pools),
            )
        ],
        "task_default_queue": tasks.CONTROL_QUEUE,
        "task_create_missing_queues": False,
        "task_serializer": "json",
        "result_serializer": "json",
        "accept_content": ["json"],
        "task_acks_late": False,
        "task_ignore_result": True,
        "task_track_started": True,
        # For Flower; those of the ticks are switched off in tasks.py. An event for each message
        # sent would cost as much as the message, and say what the next event says again.
        "worker_send_task_events": True,
        "worker_prefetch_multiplier": 1,
        "worker_disable_prefetch": True,
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_redirect_stdouts": False,
        "result_backend_always_retry": True,
        # Otherwise each thread that sends a message builds a backend of its own first.
        "result_backend_thread_safe": True,
        "beat_schedule": beat_schedule(options),
    }


def celery_url(redis_url: str) -> str:
    """Write the URL of a Redis as Celery wants it, where that differs from redis-py's own form."""
    parts = parse.urlsplit(redis_url)
    query = dict(parse.parse_qsl(parts.query))
    if parts.scheme == "unix":
        query["virtual_host"] = query.pop("db", "0")
        return f"redis+socket://{parts.netloc}{parts.path}?{parse.urlencode(query)}"
    if parts.scheme == "rediss":
        # redis-py's default, which Celery wants to have said.
        query.setdefault("ssl_cert_reqs", "required")
    return parts._replace(query=parse.urlencode(query)).geturl()


def _queue(name: str) -> Queue:
    # Named in full: queues that share an exchange and a key share their messages.
    return Queue(name, exchange=Exchange(name, type="direct"), routing_key=name)


# By beat's clock and that of the worker for control, which may be hours apart.
TICK_LIFETIME = 86400.0  # seconds


def beat_schedule(options: settings.Settings) -> dict[str, dict[str, Any]]:
    """What beat sends: each tick for each pool, with its interval, so that stale ones are known."""
    intervals = {
        tasks.POLL: options.poll_interval,
        tasks.CANCEL: options.cancel_interval,
        tasks.RECOVER: options.recover_interval,
        tasks.SYNC: float(options.heartbeat_interval),
    }
    return {
        f"{task}:{pool}": {
            "task": task,
            "schedule": schedule(interval),
            "args": (pool,),
            "options": {
                "queue": tasks.CONTROL_QUEUE,
                "expires": max(interval, TICK_LIFETIME),
                "headers": {tasks.INTERVAL: interval},
                "ignore_result": True,
            },
        }
        for pool in options.work_pools
        for task, interval in intervals.items()
    }
