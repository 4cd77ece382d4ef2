"""The connection to Redis."""

from __future__ import annotations

import threading

import redis
from redis import backoff, retry

# Redis answers within milliseconds or is away; a tick must not hang on it.
TIMEOUT = 2.0  # seconds
# Every operation on the ledger may be repeated.
RETRIES = 2


class ForkSafePool(redis.ConnectionPool):
    """A pool that a fork can use whatever the threads of its parent did at that moment."""

    def reset(self) -> None:
        """Forget the parent's connections; redis-py calls this at the first use in a fork."""
        # Since version 8 it takes its lock for that, which nobody will ever give back here if a
        # thread of the parent had it: an embedded beat stood still for ever.
        self._lock = threading.RLock()
        super().reset()


def connect_redis(url: str) -> redis.Redis:
    """Make a connection pool; connects when first used. Safe to use after a fork."""
    pool = ForkSafePool.from_url(
        url,
        decode_responses=True,
        socket_timeout=TIMEOUT,
        socket_connect_timeout=TIMEOUT,
        health_check_interval=10,
        retry=retry.Retry(backoff.ExponentialBackoff(cap=0.2, base=0.05), RETRIES),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )
    return redis.Redis.from_pool(pool)
