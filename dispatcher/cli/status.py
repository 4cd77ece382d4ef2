"""``dispatcher status``."""

from __future__ import annotations

import json
from collections.abc import Iterator

import click
from rich import box as boxes
from rich import console as consoles
from rich import table as tables
from rich.markup import escape

from dispatcher import settings
from dispatcher.ledger import keys
from dispatcher.operations import health, status
from dispatcher.prefect_api import api_connection, retry

REDIS_TIMEOUT = 2.0  # seconds
API_TIMEOUT = 5.0  # seconds
# A server on SQLite refuses a request now and then; one that is away should not be waited for.
RETRIES = retry.RetryPolicy(max_attempts=3, budget_seconds=API_TIMEOUT)

COLOURS = {"READY": "green", "NOT_READY": "red", "PAUSED": "yellow"}
UNKNOWN = "?"


@click.command
@click.option(
    "--output",
    type=click.Choice(["table", "json"]),
    default="table",
    show_default=True,
    help="A table for people or one JSON object for scripts.",
)
def command(output: str) -> None:
    """Show the work pools, workers, slots and claims of the fleet.

    Exits with 1 if Redis, the Prefect API, a work pool, a work queue or every worker is missing;
    what is there is shown all the same.

    The JSON object has these keys, whose values are null where the part that knows them does not
    answer. More keys may be added.

    \b
    pools           list of name, type, status (READY, NOT_READY, PAUSED),
                    last_poll_seconds (null also before the first poll),
                    work_queues (list of name, priority, status), slots and
                    free_slots of the workers that serve it, their names (workers)
    workers         list of name, pid, version, serves_control, slots, used, free,
                    held_up (why it takes fewer runs than it could, if so), pools
                    (null if its version does not say), work_queues (all if empty),
                    dropped (messages that were none of the dispatcher's)
    runs            what is executed now, the largest first: list of flow_run_id,
                    pool, worker, seconds (since it was claimed), memory (bytes of all
                    its processes; null until measured, or if its executor cannot)
    slots           total, free
    claims          number of open claims by stage, such as opened, pending, held
    oldest_waiting  null if none, else flow_run_id, name, pool, seconds,
                    waits_for ("a claim" or "a worker")
    problems        list of sentences, empty if all is well
    """  # noqa: D301 - the escape is click's
    found = read(settings.load())
    if output == "json":
        click.echo(json.dumps(found.to_json(), indent=2))
    else:
        console = consoles.Console(highlight=False)
        for each in render(found):
            console.print(each, soft_wrap=isinstance(each, str))
    raise SystemExit(1 if found.problems else 0)


# In the table; the JSON has all of them.
SHOWN_RUNS = 20


def read(options: settings.Settings) -> status.Status:
    """Ask the Redis and the Prefect API of the settings, waiting for each some seconds at most."""
    api = api_connection.connect_api(options, timeout_seconds=API_TIMEOUT, retry_policy=RETRIES)
    prefix = keys.prefix_of(options.namespace)
    with health.connect(options.redis_url.get_secret_value(), prefix, REDIS_TIMEOUT) as redis:
        found = status.get_status(
            api=api,
            redis=redis,
            pools=options.work_pools,
            work_queues=options.work_queues,
            prefix=prefix,
        )
    api.transport.close()
    return found


def render(found: status.Status) -> Iterator[tables.Table | str]:
    """Return what to print, part by part."""
    yield pools_table(found.pools)
    yield workers_table(found.workers or ())
    for worker in found.workers or ():
        if worker.held_up:
            why = f"{worker.name} takes up to {worker.slots} runs: {worker.held_up}"
            yield f"[yellow]{escape(why)}[/]"
        if worker.dropped:
            what = f"{worker.name} has dropped {worker.dropped} messages that were not for it"
            yield f"[yellow]{escape(what)}[/]"
    if found.runs:
        yield runs_table(found.runs[:SHOWN_RUNS])
        if len(found.runs) > SHOWN_RUNS:
            yield f"… and {len(found.runs) - SHOWN_RUNS} more runs"
    yield slots_line(found)
    if found.oldest_waiting is not None:
        yield waiting_line(found.oldest_waiting)
    for problem in found.problems:
        yield f"[red]{escape(problem)}[/]"


def pools_table(pools: tuple[status.WorkPoolStatus, ...]) -> tables.Table:
    """Name, type and status of every pool, and when it was polled."""
    table = tables.Table("Work pool", "Type", "Status", "Last poll", "Queues", box=boxes.SIMPLE)
    for name in ("Slots", "Free"):
        table.add_column(name, justify="right")
    for pool in pools:
        table.add_row(
            escape(pool.name),
            escape(pool.type or UNKNOWN),
            coloured(pool.status),
            "" if pool.last_poll_seconds is None else f"{in_words(pool.last_poll_seconds)} ago",
            UNKNOWN if pool.work_queues is None else queues(pool.work_queues),
            UNKNOWN if pool.slots is None else str(pool.slots),
            UNKNOWN if pool.free_slots is None else str(pool.free_slots),
        )
    return table


def workers_table(workers: tuple[status.WorkerStatus, ...]) -> tables.Table:
    """Every worker and its slots."""
    table = tables.Table("Worker", "Serves", "Work pools", box=boxes.SIMPLE)
    for name in ("Slots", "Used", "Free"):
        table.add_column(name, justify="right")
    for worker in workers:
        serves = [
            *(["control"] if worker.serves_control else []),
            *(["runs"] if worker.slots or worker.held_up else []),
        ]
        numbers = (worker.slots, worker.used, worker.free)
        pools = UNKNOWN if worker.pools is None else ", ".join(worker.pools)
        table.add_row(escape(worker.name), ", ".join(serves), escape(pools), *map(str, numbers))
    return table


def runs_table(runs: tuple[status.HeldRun, ...]) -> tables.Table:
    """What is executed, and what it uses."""
    table = tables.Table("Flow run", "Work pool", "Worker", box=boxes.SIMPLE)
    for name in ("Since", "Memory"):
        table.add_column(name, justify="right")
    for run in runs:
        table.add_row(
            str(run.flow_run_id),
            escape(run.pool),
            escape(run.worker),
            in_words(run.seconds),
            UNKNOWN if run.memory is None else f"{run.memory / 2**20:,.0f} MiB",
        )
    return table


def slots_line(found: status.Status) -> str:
    """The sums over all workers and claims."""
    if found.claims is None:
        return f"Slots: {UNKNOWN}  Claims: {UNKNOWN}"
    claims = ", ".join(f"{count} {stage}" for stage, count in found.claims.items())
    return f"Slots: {found.free_slots} of {found.slots} free  Claims: {claims}"


def waiting_line(run: status.WaitingRun) -> str:
    """The run that waits longest."""
    name = f"{run.name} ({run.flow_run_id})" if run.name else str(run.flow_run_id)
    pool = f" of {run.pool}" if run.pool else ""
    return escape(f"Waits longest: {name}{pool}, {in_words(run.seconds)} for {run.waits_for}")


def queues(found: tuple[status.WorkQueueStatus, ...]) -> str:
    """The names of the queues; the status of those that cannot give work."""
    return ", ".join(
        escape(queue.name) + (f" ({coloured('PAUSED')})" if queue.status == "PAUSED" else "")
        for queue in found
    )


def coloured(pool_status: str | None) -> str:
    """Return a status in its colour."""
    if pool_status is None:
        return UNKNOWN
    return f"[{COLOURS.get(pool_status, 'default')}]{pool_status}[/]"


def in_words(seconds: float) -> str:
    """Return a duration as people say it."""
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
