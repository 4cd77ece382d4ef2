"""Celery's settings. Most keep one of its habits on Redis from losing or doubling a run."""

from __future__ import annotations

from typing import Any
from urllib import parse

from celery.schedules import schedule
from kombu import Exchange, Queue

from dispatcher import settings
from dispatcher.celery_app import tasks
from dispatcher.ledger import keys, redis_url

# The same in every process on one Redis, since the smallest one counts for all. No claim depends
# on it: messages are acknowledged before their task begins, and a second delivery is refused.
VISIBILITY_TIMEOUT = 3600  # seconds


def configuration(options: settings.Settings) -> dict[str, Any]:
    """Celery's settings for one set of ours."""
    return {
        **broker(options),
        # Results are told to Prefect. Celery wants a place for what a revoke does to a task all the
        # same: one in its own process, which nobody else reads.
        "result_backend": "cache+memory://",
        "broker_connection_retry_on_startup": True,
        "broker_connection_max_retries": None,
        # Also one that refuses what a worker asks for, as Redis does while its disk is full.
        "broker_channel_error_retry": True,
        # Those of single pools are for workers that name them with -Q.
        "task_queues": [
            _queue(name, arguments=queue_arguments(options))
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
        "worker_cancel_long_running_tasks_on_connection_loss": False,
        "worker_redirect_stdouts": False,
        # Otherwise each thread that sends a message builds a backend of its own first.
        "result_backend_thread_safe": True,
        "beat_schedule": beat_schedule(options),
    }


def broker(options: settings.Settings) -> dict[str, Any]:
    """Celery's settings for the broker: the Redis of the ledger unless there is another one."""
    url = (options.broker_url or options.redis_url).get_secret_value()
    if is_amqp(options):
        return {
            "broker_url": url,
            # A message is on its way when the broker has it, not when it has been written.
            "broker_transport_options": {"confirm_publish": True},
        }
    transport: dict[str, Any] = {
        "visibility_timeout": VISIBILITY_TIMEOUT,
        "unacked_restore_interval": 5,
        "unacked_restore_throttle": 1,
        # Control work first, wherever one worker serves both queues.
        "queue_order_strategy": "priority",
        "health_check_interval": 10,
        "socket_timeout": 10,
        "socket_connect_timeout": 5,
        **sentinel_options(url),
    }
    if options.namespace != keys.DEFAULT_NAMESPACE:
        transport["global_keyprefix"] = keys.prefix_of(options.namespace)
    return {
        "broker_url": celery_url(url),
        **sentinel_tls(url),
        "broker_transport_options": transport,
        # Celery has it for Redis alone.
        "worker_disable_prefetch": True,
    }


def is_amqp(options: settings.Settings) -> bool:
    """Whether the broker is RabbitMQ."""
    return options.broker_url is not None and options.broker_url.get_secret_value().startswith(
        ("amqp://", "amqps://")
    )


def queue_arguments(options: settings.Settings) -> dict[str, Any]:
    """What the queues are declared with: RabbitMQ keeps those of a quorum through a node's end."""
    return {"x-queue-type": "quorum"} if is_amqp(options) else {}


def sentinel_options(url: str) -> dict[str, Any]:
    """What Celery is told of a Redis behind Sentinels besides their URL."""
    if not url.startswith(redis_url.SENTINEL):
        return {}
    address = redis_url.parse_sentinel(url)
    asked: dict[str, Any] = {}
    if address.sentinel_password is not None:
        asked["password"] = address.sentinel_password
    if address.tls is not None:
        asked |= {"ssl": True, **address.tls}
    return {"master_name": address.service, **({"sentinel_kwargs": asked} if asked else {})}


def sentinel_tls(url: str) -> dict[str, Any]:
    """Celery's settings for a Redis behind Sentinels that is reached by TLS."""
    tls = redis_url.parse_sentinel(url).tls if url.startswith(redis_url.SENTINEL) else None
    return {} if tls is None else {"broker_use_ssl": {"ssl_cert_reqs": "required", **tls}}


def celery_url(url: str) -> str:
    """Write the URL of a Redis as Celery wants it, where that differs from redis-py's own form."""
    if url.startswith(redis_url.SENTINEL):
        return _sentinel_url(redis_url.parse_sentinel(url))
    parts = parse.urlsplit(url)
    query = dict(parse.parse_qsl(parts.query))
    if parts.scheme == "unix":
        query["virtual_host"] = query.pop("db", "0")
        return f"redis+socket://{parts.netloc}{parts.path}?{parse.urlencode(query)}"
    if parts.scheme == "rediss":
        # redis-py's default, which Celery wants to have said.
        query.setdefault("ssl_cert_reqs", "required")
    return parts._replace(query=parse.urlencode(query)).geturl()


def _sentinel_url(address: redis_url.SentinelAddress) -> str:
    known = [_quoted(address.username), _quoted(address.password)]
    credentials = f"{':'.join(known)}@" if any(known) else ""
    return ";".join(
        f"sentinel://{credentials}{host}:{port}/{address.database}"
        for host, port in address.sentinels
    )


def _quoted(text: str | None) -> str:
    """Write a part of a URL."""
    return parse.quote(text or "", safe="")


def _queue(name: str, *, arguments: dict[str, Any]) -> Queue:
    """A queue with an exchange of its own.

    Named in full: queues that share an exchange and a key share their messages.
    """
    exchange = Exchange(name, type="direct")
    return Queue(name, exchange=exchange, routing_key=name, queue_arguments=arguments)


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
