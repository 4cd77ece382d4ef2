"""Whether a Redis can be the ledger, asked once when a worker starts."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping
from typing import Any
from uuid import uuid4

import redis

# Of the answer of INFO: a server that calls itself Redis, as Valkey does with a version that fits.
OLDEST = (6, 2)

OF_A_CLUSTER = (
    "the Redis of DISPATCHER_REDIS_URL is a node of a cluster: write it as"
    " redis+cluster://host:6379,host:6379, and give the messages another broker by"
    " DISPATCHER_BROKER_URL"
)

NO_REDIS = (
    "what answers at the address of DISPATCHER_REDIS_URL is no Redis; look at its host and port"
)
HTTP_REQUEST, HTTP_SECONDS = b"GET / HTTP/1.0\r\n\r\n", 2.0

logger = logging.getLogger(__name__)

Say = Callable[[str], None]


class UnusableRedisError(Exception):
    """It cannot be the ledger; the message says what to do."""


def check(
    client: redis.Redis, prefix: str, *, cluster: bool = False, warn: Say = logger.warning
) -> None:
    """Write, read and take away a key, and look at the server's settings.

    ``cluster`` is whether one is expected. A server that is away is none of the worker's faults:
    it is looked for until it is there.

    Raises:
        UnusableRedisError: nothing will make this work but another setting.
    """
    try:
        _probe(client, f"{prefix}probe:{uuid4()}")
        look(_info(client), warn, cluster=cluster)
    except redis.ReadOnlyError:
        raise UnusableRedisError(
            "the Redis of DISPATCHER_REDIS_URL is a replica, which cannot be written to; name its"
            " primary, or the Sentinels that know it (sentinel://host:26379/name)"
        ) from None
    except redis.exceptions.NoPermissionError as error:
        raise UnusableRedisError(
            f"the Redis user of DISPATCHER_REDIS_URL lacks a right ({error}); docs/deploy.md lists"
            " those that suffice"
        ) from None
    except redis.AuthenticationError:
        raise UnusableRedisError(
            "Redis refuses the user or password of DISPATCHER_REDIS_URL"
        ) from None
    except redis.exceptions.MovedError:
        raise UnusableRedisError(OF_A_CLUSTER) from None
    except redis.ResponseError as error:
        raise UnusableRedisError(f"Redis refuses what the ledger needs: {error}") from None
    except redis.exceptions.InvalidResponse:
        raise UnusableRedisError(NO_REDIS) from None
    except redis.RedisError as error:
        if isinstance(error, redis.TimeoutError) and _speaks_http(client):
            raise UnusableRedisError(NO_REDIS) from None
        warn(f"the worker starts without Redis, and serves once it answers: {error}")


def look(info: Mapping[str, Any], warn: Say, *, cluster: bool = False) -> None:
    """Look at what a server says of itself.

    Raises:
        UnusableRedisError: it is too old, or one of a cluster where none is expected.
    """
    if info.get("redis_mode") == "cluster" and not cluster:
        raise UnusableRedisError(OF_A_CLUSTER)
    version = str(info.get("redis_version", ""))
    numbers = tuple(int(part) for part in version.split(".")[:2] if part.isdecimal())
    if numbers and numbers < OLDEST:
        raise UnusableRedisError(
            f"Redis {version} is too old; {'.'.join(map(str, OLDEST))} or newer is needed"
        )
    policy = str(info.get("maxmemory_policy", "noeviction"))
    if policy != "noeviction":
        warn(
            f"Redis may evict keys when its memory is full (maxmemory-policy {policy}): an evicted"
            " key is a lost message or claim, which is found again, but slowly; set noeviction"
        )


def _info(client: redis.Redis) -> Mapping[str, Any]:
    try:
        told: Any = client.info()
    except redis.exceptions.NoPermissionError:
        return {}  # a right that nothing else needs
    return dict(told)


def _speaks_http(client: redis.Redis) -> bool:
    """Whether a server that waits for more than a command of Redis is one of the web."""
    place = client.connection_pool.connection_kwargs
    try:
        with socket.create_connection((place["host"], place["port"]), HTTP_SECONDS) as connection:
            connection.sendall(HTTP_REQUEST)
            return connection.recv(5) == b"HTTP/"
    except (OSError, KeyError):
        return False


def _probe(client: redis.Redis, key: str) -> None:
    client.set(key, "1", ex=10)
    client.eval("return redis.call('GET', KEYS[1])", 1, key)
    client.delete(key)
