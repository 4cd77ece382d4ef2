"""``dispatcher demo``."""

from __future__ import annotations

import contextlib
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path

import click
from rich import box as boxes
from rich import console as consoles
from rich import live as lives
from rich import table as tables
from rich.markup import escape

from dispatcher.prefect_api import client as clients
from dispatcher.prefect_api import schemas, transport
from dispatcher.standalone import demo, errors, ports, samples, signals, stack
from dispatcher.standalone.directory import DataDirectory

POOL = "demo"
TIMEOUT_SECONDS = 180.0
GRACE_SECONDS = 5.0  # everything has ended by then, or the demo has failed
POLL_INTERVAL_SECONDS = "1"
SETTINGS = "DISPATCHER_"
NAME_WIDTH = 2 + max(len(each.name) for each in samples.SAMPLES)

COLOURS = {
    schemas.StateType.COMPLETED: "green",
    schemas.StateType.FAILED: "red",
    schemas.StateType.CRASHED: "dark_orange",
    schemas.StateType.CANCELLED: "bright_black",
    schemas.StateType.CANCELLING: "bright_black",
    schemas.StateType.RUNNING: "blue",
}

Show = Callable[[Sequence[demo.Run]], None]


@click.command
@click.option(
    "--concurrency",
    type=click.IntRange(min=1),
    default=stack.Options.concurrency,
    show_default="number of CPUs",
    help="How many flow runs execute at once.",
)
@click.option(
    "--timeout",
    "timeout_seconds",
    type=click.FloatRange(min=1),
    default=TIMEOUT_SECONDS,
    show_default=True,
    help="Seconds after which the runs must have ended.",
)
def command(concurrency: int, timeout_seconds: float) -> None:
    """Run a dozen sample flows on a stack of its own and show what happens.

    One fails, one takes its interpreter down, one is cancelled while it runs. Exits with 0 if each
    ended as it has to. Nothing is left behind: neither processes nor files.
    """
    console = consoles.Console(highlight=False)
    began = time.monotonic()
    with signals.StopRequests() as stop_requests, temporary_stack(concurrency) as own:
        runs = run(own, console, stop_requests, timeout_seconds)
    demo.check(runs)
    seconds = time.monotonic() - began
    console.print(f"All {len(runs)} runs ended as they have to, after {seconds:.0f} s in all.")


@contextlib.contextmanager
def temporary_stack(concurrency: int) -> Iterator[stack.Stack]:
    """A stack whose data are gone afterwards, beside any other Prefect server."""
    with tempfile.TemporaryDirectory(prefix="dispatcher-demo-") as name:
        data = DataDirectory(Path(name))
        with data.locked():
            options = stack.Options(
                pools=(POOL,),
                concurrency=concurrency,
                grace_seconds=GRACE_SECONDS,
                prefect_port=ports.free_port(),
                flower_port=ports.free_port(),
            )
            yield stack.Stack(data, options, directory=data.path, environ=environment())


def environment() -> dict[str, str]:
    """The user's variables without settings of the dispatcher, which are not meant for the demo."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(SETTINGS)}
    return {**kept, "DISPATCHER_POLL_INTERVAL": POLL_INTERVAL_SECONDS}


def run(
    own: stack.Stack,
    console: consoles.Console,
    stop_requests: signals.StopRequests,
    timeout_seconds: float,
) -> list[demo.Run]:
    """Run the samples on the stack, showing them meanwhile, and print what each did."""

    def report(line: str) -> None:
        console.print(line, markup=False, soft_wrap=True)

    report(f"Starting Redis, a Prefect server, workers, beat and Flower in {own.data.path}")
    with own.running(report=report, stop_requests=stop_requests) as supervisor:

        def watch() -> None:
            supervisor.watch()
            if stop_requests():
                raise errors.StopRequested

        client = clients.PrefectClient(transport.Transport(own.api_url))
        with contextlib.closing(client.transport), showing(console) as show:
            runs = demo.Demo(
                client, pool=POOL, flows_directory=samples.directory(), watch=watch, show=show
            ).run(samples.SAMPLES, timeout_seconds)
        console.print(outcomes(runs))
        for line in messages(runs):
            report(line)
    return runs


@contextlib.contextmanager
def showing(console: consoles.Console) -> Iterator[Show]:
    """A live table on a terminal; elsewhere a line for each change."""
    if not console.is_terminal:
        yield Lines(console).show
        return
    with lives.Live(console=console, transient=True) as live:
        yield lambda runs: live.update(progress(runs))


class Lines:
    """Prints each state that a run enters, once."""

    def __init__(self, console: consoles.Console) -> None:
        self._console = console
        self._printed: dict[str, int] = {}

    def show(self, runs: Sequence[demo.Run]) -> None:
        """Print what is new."""
        for each in runs:
            for state in each.states[self._printed.get(each.sample.name, 0) :]:
                when = state.timestamp.astimezone().strftime("%H:%M:%S") if state.timestamp else ""
                line = f"{when}  {each.sample.name:<{NAME_WIDTH}}{state.name}"
                self._console.print(line, markup=False)
            self._printed[each.sample.name] = len(each.states)


def progress(runs: Sequence[demo.Run]) -> tables.Table:
    """Name, state and time in it of every run."""
    table = tables.Table("Flow run", "Flow", "State", "Since", box=boxes.SIMPLE)
    for each in runs:
        since = f"{age_seconds(each.state):.0f} s" if each.state and not each.is_over else ""
        table.add_row(each.sample.name, escape(each.sample.call), coloured(each.state), since)
    return table


def outcomes(runs: Sequence[demo.Run]) -> tables.Table:
    """How every run ended, and how long each step took."""
    table = tables.Table("", "Flow run", "Flow", "End", box=boxes.SIMPLE, pad_edge=False)
    for step in ("Waited", "Started", "Ran"):
        table.add_column(step, justify="right")
    for each in runs:
        table.add_row(
            "[green]✓[/]" if each.is_as_expected else "[red]✗[/]",
            each.sample.name,
            escape(each.sample.call),
            coloured(each.state),
            *map(in_seconds, (each.waited_seconds, each.starting_seconds, each.running_seconds)),
        )
    return table


def messages(runs: Sequence[demo.Run]) -> list[str]:
    """What Prefect says about the runs that did not simply complete."""
    return [
        f"{each.sample.name}: {each.state.message}"
        for each in runs
        if each.state and each.state.message and each.state.type is not samples.COMPLETED
    ]


def coloured(state: schemas.State | None) -> str:
    """Return the state's name in Prefect's colour for it."""
    if state is None:
        return ""
    return f"[{COLOURS.get(state.type, 'default')}]{state.name}[/]"


def in_seconds(seconds: float | None) -> str:
    """Return a duration for a table."""
    return "" if seconds is None else f"{seconds:.1f} s"


def age_seconds(state: schemas.State) -> float:
    """Return for how long a run has been in the state."""
    return (datetime.now(UTC) - state.timestamp).total_seconds() if state.timestamp else 0.0
