"""``dispatcher drain``."""

from __future__ import annotations

import time

import click
import redis
from rich import console as consoles
from rich import status as statuses

from dispatcher import settings
from dispatcher.ledger import fleet, keys, redis_ledger
from dispatcher.operations import drain as draining
from dispatcher.operations import health

REDIS_TIMEOUT = 2.0  # seconds
LOOK_INTERVAL = 0.5  # seconds


@click.command
@click.argument("workers", nargs=-1, metavar="WORKER...")
@click.option("--all", "every", is_flag=True, help="Drain every worker that executes runs.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0.0),
    help="Seconds to wait; as long as it takes if absent.",
)
def command(workers: tuple[str, ...], *, every: bool, timeout: float | None) -> None:
    """Have workers take no new runs, and wait until the runs they have are through.

    WORKER is a name as "dispatcher status" shows it, such as runs@host. A drained worker goes on
    to idle: stop it with SIGTERM. Started anew it takes runs again. Exits with 1 if runs are left
    when the time is up.
    """
    if bool(workers) == every:
        raise click.UsageError("name the workers to drain, or give --all")
    options = settings.load()
    url, prefix = options.redis_url.get_secret_value(), keys.prefix_of(options.namespace)
    try:
        with health.connect(url, prefix, REDIS_TIMEOUT) as connection:
            work = draining.Drain(
                fleet.Fleet(connection, prefix=prefix),
                redis_ledger.RedisLedger(connection, prefix=prefix),
            )
            nodes = work.choose(workers, every=every)
            left = drain(work, nodes, timeout)
    except redis.RedisError as error:
        raise click.ClickException(f"Redis does not answer: {error}") from error
    if left:
        raise click.ClickException(f"{left} runs are left after {timeout:g} s")
    click.echo(f"drained: {', '.join(node.name for node in nodes) or 'no worker'}")


def drain(work: draining.Drain, nodes: list[fleet.Node], timeout: float | None) -> int:
    """Drain and wait; return how many runs are left."""
    deadline = None if timeout is None else time.monotonic() + timeout
    work.begin(nodes)
    with consoles.Console(stderr=True).status("") as display:
        while True:
            # Asked in this order, since a worker may take a last run until it has heeded.
            heeded = work.heeded(nodes)
            running = work.running(nodes)
            left = sum(running.values())
            if heeded and not left:
                return 0
            if deadline is not None and time.monotonic() > deadline:
                return left
            show(display, running)
            time.sleep(LOOK_INTERVAL)


def show(display: statuses.Status, running: dict[str, int]) -> None:
    """Say what is waited for."""
    parts = [f"{name}: {count} runs" for name, count in sorted(running.items())]
    display.update("waiting for " + ", ".join(parts))
