"""``dispatcher standalone``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click
from rich import console as consoles
from rich import table as tables

from dispatcher.standalone import errors, signals, stack
from dispatcher.standalone.directory import DataDirectory

PORT = click.IntRange(1, 65535)
DEFAULTS = stack.Options()


@click.command
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    default=Path(".dispatcher"),
    show_default=True,
    help="Where the data and logs are kept.",
)
@click.option(
    "--pool",
    "pools",
    multiple=True,
    default=DEFAULTS.pools,
    show_default=True,
    help="Work pool to serve, created if missing. May be given several times.",
)
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=DEFAULTS.concurrency,
    show_default="number of CPUs",
    help="How many flow runs execute at once.",
)
@click.option(
    "--grace",
    "grace_seconds",
    type=click.FloatRange(min=0),
    default=DEFAULTS.grace_seconds,
    show_default=True,
    help="Seconds that running flows have to finish when the stack is stopped.",
)
@click.option("--prefect-port", type=PORT, help="Port of the Prefect server.")
@click.option("--flower-port", type=PORT, help="Port of Flower.")
@click.option("--redis-port", type=PORT, help="Port of Redis.")
def command(data_dir: Path, **chosen: Any) -> None:
    """Run Redis, a Prefect server, workers, beat and Flower on this machine.

    Everything listens on the loopback interface only. Ports are chosen at the first start and
    remembered, and the data survive a restart.
    """
    data = DataDirectory(data_dir)
    console = consoles.Console(highlight=False)
    with signals.StopRequests() as stop_requests, data.locked():
        serve(stack.Stack(data, stack.Options(**chosen)), console, stop_requests)


def serve(own: stack.Stack, console: consoles.Console, stop_requests: signals.StopRequests) -> None:
    """Run the stack until it is asked to stop."""

    def report(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    report(f"Starting in {own.data.path}")
    try:
        with own.running(report=report, stop_requests=stop_requests) as supervisor:
            console.print(summary(own))
            report(f"To use it from another terminal: export PREFECT_API_URL={own.api_url}")
            report("Ctrl-C stops everything; the data stay.")
            supervisor.run()
            report(
                f"Stopping; running flows have {own.options.grace_seconds:.0f} s to finish, "
                "Ctrl-C stops them at once."
            )
    except errors.StopRequested:
        pass
    report("Stopped.")


def summary(own: stack.Stack) -> tables.Table:
    """Return the addresses of the stack."""
    table = tables.Table.grid(padding=(0, 2))
    runs = "1 run" if own.options.concurrency == 1 else f"{own.options.concurrency} runs"
    table.add_row("Prefect UI", f"http://127.0.0.1:{own.prefect_port}")
    table.add_row("Prefect API", own.api_url)
    table.add_row("Flower", f"http://127.0.0.1:{own.flower_port}")
    table.add_row("Work pools", f"{', '.join(own.options.pools)}  ({runs} at once)")
    table.add_row("Logs", str(own.data.logs))
    return table
