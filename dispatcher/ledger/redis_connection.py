"""The connection to Redis."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping
from typing import Any

import redis
from redis import backoff, retry, sentinel

from dispatcher.ledger import keys, redis_primary, redis_url

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


def connect_redis(url: str, *, prefix: str = keys.PREFIX) -> redis.Redis:
    """Make a connection pool; connects when first used. Safe to use after a fork.

    ``prefix`` is what the ledger's keys begin with: in a cluster it tells who has them.
    """
    often = retry.Retry(backoff.ExponentialBackoff(cap=0.2, base=0.05), RETRIES)
    return _open(
        url,
        prefix,
        timeout_seconds=TIMEOUT,
        health_check_interval=10,
        retry=often,
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


def connect_once(url: str, *, timeout_seconds: float, prefix: str = keys.PREFIX) -> redis.Redis:
    """Make such a client that tries everything once."""
    return _open(url, prefix, timeout_seconds=timeout_seconds, retry=_once())


def _open(url: str, prefix: str, *, timeout_seconds: float, **options: Any) -> redis.Redis:
    limits = {"socket_timeout": timeout_seconds, "socket_connect_timeout": timeout_seconds}
    options |= {"decode_responses": True, **limits}
    if url.startswith(redis_url.SENTINEL):
        where = redis_url.parse_sentinel(url)
        user = {"username": where.username, "password": where.password, "db": where.database}
        options |= {**user, **_following(where.tls), "find": _by_sentinels(where, limits)}
    elif url.startswith(redis_url.CLUSTER):
        cluster = redis_url.parse_cluster(url)
        user = {"username": cluster.username, "password": cluster.password}
        find = _by_nodes(cluster, prefix, {**limits, **user})
        options |= {**user, **_following(cluster.tls), "find": find}
    else:
        return redis.Redis.from_pool(ForkSafePool.from_url(url, **options))
    return redis.Redis.from_pool(ForkSafePool(**options))


def _by_sentinels(
    address: redis_url.SentinelAddress, limits: Mapping[str, Any]
) -> redis_primary.Find:
    watching = sentinel.Sentinel([])  # type: ignore[no-untyped-call]
    options = {**limits, **_secured(address.tls), "password": address.sentinel_password}
    watching.sentinels = [_connect(options, each) for each in address.sentinels]
    return functools.partial(watching.discover_master, address.service)


def _by_nodes(
    address: redis_url.ClusterAddress, key: str, options: Mapping[str, Any]
) -> redis_primary.Find:
    connect = functools.partial(_connect, {**options, **_secured(address.tls), "retry": _once()})
    return functools.partial(redis_primary.find_node, address.nodes, key, connect)


def _connect(options: Mapping[str, Any], address: redis_primary.Address) -> redis.Redis:
    host, port = address
    return redis.Redis.from_pool(ForkSafePool(host=host, port=port, **options))


def _following(tls: Mapping[str, str] | None) -> dict[str, Any]:
    if tls is None:
        return {"connection_class": redis_primary.FollowingConnection}
    return {"connection_class": redis_primary.FollowingTlsConnection, **tls}


def _secured(tls: Mapping[str, str] | None) -> dict[str, Any]:
    return {} if tls is None else {"connection_class": redis.SSLConnection, **tls}


def _once() -> retry.Retry:
    return retry.Retry(backoff.NoBackoff(), 0)
