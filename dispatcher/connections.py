"""Connections to Redis and to the Prefect API, as the settings say."""

from __future__ import annotations

import redis
from redis import backoff, retry

from dispatcher import settings
from dispatcher.api import client, transport
from dispatcher.api import retry as api_retry

# Redis answers within milliseconds or is away; a tick must not hang on it.
REDIS_TIMEOUT = 2.0  # seconds
# Every operation on the ledger may be repeated.
REDIS_RETRIES = 2


def connect_redis(options: settings.Settings) -> redis.Redis:
    """Make a connection pool; connects when first used."""
    return redis.Redis.from_url(
        options.redis_url.get_secret_value(),
        decode_responses=True,
        socket_timeout=REDIS_TIMEOUT,
        socket_connect_timeout=REDIS_TIMEOUT,
        health_check_interval=10,
        retry=retry.Retry(backoff.ExponentialBackoff(cap=0.2, base=0.05), REDIS_RETRIES),
        retry_on_error=[redis.ConnectionError, redis.TimeoutError],
    )


def connect_api(
    options: settings.Settings,
    *,
    timeout_seconds: float = transport.TIMEOUT_SECONDS,
    retry_policy: api_retry.RetryPolicy = api_retry.RetryPolicy(),  # noqa: B008 - it is frozen
) -> client.PrefectClient:
    """Make an API client; connects when first used."""
    key, auth = options.prefect_api_key, options.prefect_api_auth_string
    return client.PrefectClient(
        transport.Transport(
            options.prefect_api_url,
            api_key=key.get_secret_value() if key else None,
            auth_string=auth.get_secret_value() if auth else None,
            custom_headers=options.prefect_client_custom_headers,
            timeout_seconds=timeout_seconds,
            retry_policy=retry_policy,
        )
    )
