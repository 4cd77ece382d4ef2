"""What a worker looks at before it starts, so that a mistake is one line at once.

What nothing but another setting can mend ends it. What may get better by itself, such as a server
that is away, is a warning, and the worker goes on.
"""

from __future__ import annotations

import contextlib
import difflib
import logging
import sys
from collections.abc import Collection
from typing import Any
from urllib import parse

from dispatcher import error_boundary, errors, services
from dispatcher.celery_app import neighbours, node_description, redis_check
from dispatcher.ledger import redis_connection, redis_url
from dispatcher.prefect_api import api_connection, client, retry, ui_links

# Each server is asked once, and no worker is kept from starting for longer than this.
TIMEOUT = 3.0  # seconds
# A busy server may answer late by some seconds.
CLOCK_TOLERANCE = 10.0  # seconds
# Releases of Prefect, see docs/compatibility.md.
TESTED = ((3, 6), (3, 9))
# Those of Celery's pools that patch the standard library, which threads and forks here rely on.
UNFIT_POOLS = ("celery.concurrency.gevent", "celery.concurrency.eventlet")

logger = logging.getLogger(__name__)


def run(worker: Any, parts: services.Services) -> None:
    """Look at everything. Raises SystemExit with one line if the worker is not to start."""
    try:
        check_pool(worker)
        node_description.describe(worker, parts.options)
        check_redis(parts)
        check_neighbours(parts)
        check_prefect(parts)
    except (
        ValueError,
        redis_check.UnusableRedisError,
        neighbours.ForeignFleetError,
        errors.DispatcherError,
    ) as error:
        sys.exit(f"dispatcher: {error}")


def check_pool(worker: Any) -> None:
    """Refuse Celery's pools of green threads. Raises ValueError."""
    module = worker.pool_cls.__module__
    if module in UNFIT_POOLS:
        name = module.rpartition(".")[2]
        raise ValueError(f"-P {name} cannot be used here; prefork, threads and solo can")


def check_redis(parts: services.Services) -> None:
    """Look at the Redis of the ledger; raises as :func:`redis_check.check`."""
    url = parts.options.redis_url.get_secret_value()
    with redis_connection.connect_once(
        url, prefix=parts.prefix, timeout_seconds=TIMEOUT
    ) as connection:
        redis_check.check(connection, parts.prefix, cluster=url.startswith(redis_url.CLUSTER))


def check_neighbours(parts: services.Services) -> None:
    """Look at the workers that are there; raises as :func:`neighbours.check`."""
    own = parts.options
    with contextlib.suppress(*error_boundary.EXPECTED):
        neighbours.check(
            parts.fleet.nodes(),
            worker_name=own.worker_name,
            prefect=ui_links.without_credentials(own.prefect_api_url),
        )


def check_prefect(parts: services.Services) -> None:
    """Look at address, credentials, clock and work pools.

    Raises:
        errors.AuthenticationFailed: whatever the worker waits, it could do nothing.
        errors.SettingsError: what answers is no Prefect API.
    """
    api = hasty_api(parts)
    try:
        known = api.list_work_pool_names()
    except errors.AuthenticationFailed:
        raise
    except errors.ApiResponseError as error:
        if not _may_get_better(error):
            raise errors.SettingsError(no_api(parts.options.prefect_api_url)) from None
        _go_on_without(error)
    except errors.ApiError as error:
        _go_on_without(error)
    else:
        check_clock(api.transport.server_clock.offset)
        with contextlib.suppress(errors.ApiError):  # Cloud does not tell
            check_release(api.read_server_version())
        for name in parts.options.work_pools:
            check_work_pool(name, known, is_made=parts.options.create_pool_if_not_found)
    finally:
        api.transport.close()


def no_api(url: str) -> str:
    """Say of an address that no Prefect API is there."""
    shown = ui_links.without_credentials(url)
    parts = parse.urlsplit(shown)
    hint = "" if parts.path.endswith("/api") else f", such as {parts.scheme}://{parts.netloc}/api"
    return f"PREFECT_API_URL is wrong: no Prefect API answers at {shown}; it ends in /api{hint}"


def check_release(release: str) -> None:
    """Say of a server's release that the dispatcher was not tested with it; none is refused."""
    numbers = tuple(int(part) for part in release.split(".")[:2] if part.isdecimal())
    if len(numbers) == 2 and not TESTED[0] <= numbers <= TESTED[1]:
        oldest, newest = (".".join(map(str, each)) for each in TESTED)
        logger.warning(
            "the server is Prefect %s; the dispatcher was tested with %s to %s",
            release,
            oldest,
            newest,
        )


def check_work_pool(name: str, known: Collection[str], *, is_made: bool) -> None:
    """Say that a work pool is not there, and which ones look alike."""
    if name in known:
        return
    alike = difflib.get_close_matches(name, known, n=3)
    hint = f"; did you mean {' or '.join(map(repr, alike))}?" if alike else ""
    fate = "is made" if is_made else "is not to be made"
    logger.warning("work pool %r does not exist in Prefect and %s%s", name, fate, hint)


def check_clock(offset: float) -> None:
    """Say once that the clock of this host is off; ``offset`` is the server's lead, in seconds."""
    if abs(offset) >= CLOCK_TOLERANCE:
        logger.warning(
            "the clock of this host is %.0f s %s by that of the Prefect server; due times count by"
            " the server's, but logs and events show this one: set it right",
            abs(offset),
            "slow" if offset > 0 else "fast",
        )


def hasty_api(parts: services.Services) -> client.PrefectClient:
    """Make an API client for a worker that starts; to be closed."""
    return api_connection.connect_api(
        parts.options,
        timeout_seconds=TIMEOUT,
        retry_policy=retry.RetryPolicy(max_attempts=1),
    )


def _may_get_better(error: errors.ApiResponseError) -> bool:
    # 501 is how a server of files answers a POST.
    return error.status_code >= 500 and error.status_code != 501


def _go_on_without(error: errors.ApiError) -> None:
    logger.warning("the worker starts without Prefect, and serves once it answers: %s", error)
