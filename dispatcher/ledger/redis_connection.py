"""The connection to Redis."""

from __future__ import annotations

import threading
from typing import Any

import redis
from redis import backoff, retry, sentinel

from dispatcher.ledger import redis_url

# Redis answers within milliseconds or is away; a tick must not hang on it.
TIMEOUT = 2.0  # seconds
# Every operation on the ledger may be repeated.
RETRIES = 2


class _ForkSafe(redis.ConnectionPool):
    """A pool that a fork can use whatever the threads of its parent did at that moment."""

    def reset(self) -> None:
        """Forget the parent's connections; redis-py calls this at the first use in a fork."""
        # Since version 8 it takes its lock for that, which nobody will ever give back here if a
        # thread of the parent had it: an embedded beat stood still for ever.
        self._lock = threading.RLock()
        super().reset()


class ForkSafePool(_ForkSafe):
    """A pool of connections to one server."""


class ForkSafeSentinelPool(_ForkSafe, sentinel.SentinelConnectionPool):
    """A pool of connections to whoever is the primary now."""


def connect_redis(url: str) -> redis.Redis:
    """Make a connection pool; connects when first used. Safe to use after a fork."""
    return open_redis(
        url,
        timeout_seconds=TIMEOUT,
        health_check_interval=10,
        retry=retry.Retry(backoff.ExponentialBackoff(cap=0.2, base=0.05), RETRIES),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


def connect_once(url: str, *, timeout_seconds: float) -> redis.Redis:
    """Make a client that tries everything once."""
    once = retry.Retry(backoff.NoBackoff(), 0)
    return open_redis(url, timeout_seconds=timeout_seconds, retry=once)


def open_redis(url: str, *, timeout_seconds: float, **options: Any) -> redis.Redis:
    """Make a connection pool with these options of redis-py's connections."""
    limits: dict[str, Any] = {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
    }
    options |= {"decode_responses": True, **limits}
    if not url.startswith(redis_url.SENTINEL):
        return redis.Redis.from_pool(ForkSafePool.from_url(url, **options))
    address = redis_url.parse_sentinel(url)
    watching = sentinel.Sentinel([], **limits)  # type: ignore[no-untyped-call]
    watching.sentinels = [
        redis.Redis.from_pool(
            ForkSafePool(host=host, port=port, password=address.sentinel_password, **limits)
        )
        for host, port in address.sentinels
    ]
    pool = ForkSafeSentinelPool(  # type: ignore[no-untyped-call]
        address.service,
        watching,
        db=address.database,
        username=address.username,
        password=address.password,
        **options,
    )
    return redis.Redis.from_pool(pool)
