"""``dispatcher health``."""

from __future__ import annotations

import socket

import click

from dispatcher import settings
from dispatcher.ledger import keys
from dispatcher.operations import health


@click.command
@click.option(
    "--node",
    help="Celery's name of the worker, such as celery@web1; any worker of this host if left out.",
)
@click.option("--beat", is_flag=True, help="Check beat of this host instead of a worker.")
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=1.0,
    show_default=True,
    help="Seconds that Redis has to answer.",
)
def command(node: str | None, beat: bool, timeout_seconds: float) -> None:
    """Check the worker or beat of this host, for a container's health check.

    Exits with 0 if Redis answers and the process has shown a sign of life there: a worker
    reports its slots every second, beat each tick that it sends. Exits with 1, and says what is
    wrong, otherwise. Prefect is not asked, since no restart of a container would mend it.

    A worker that is shutting down fails the check while it finishes its runs. Where a failed
    check ends the container, use GET /health of the worker instead (DISPATCHER_HEALTH_PORT).
    Flower has a check of its own: GET /healthcheck on its port.
    """
    if beat and node is not None:
        raise click.UsageError("--node names a worker; it does not go with --beat")
    options = settings.load()
    url, prefix = options.redis_url.get_secret_value(), keys.prefix_of(options.namespace)
    host = socket.gethostname()

    def check() -> health.Answer:
        with health.connect(url, prefix, timeout_seconds) as redis:
            if beat:
                return health.check_beat(redis, host=host, prefix=prefix)
            return health.check_worker(redis, host=host, node=node, prefix=prefix)

    answer = health.within(timeout_seconds, check)
    click.echo(answer.message)
    raise SystemExit(0 if answer.ok else 1)
