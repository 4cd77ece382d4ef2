"""``dispatcher …``: everything that is not Celery's own command line.

Each command is a module with a click command named ``command``, imported when it is used: help
and completion stay quick, whatever a command needs.

May import operations, standalone and what these are made from. Never decides: it asks and prints.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

import dispatcher
from dispatcher import errors

COMMANDS = {
    "config": "Show every setting and where it comes from.",
    "demo": "Run a dozen sample flows on a stack of its own and show what happens.",
    "drain": "Have workers take no new runs, and wait until theirs have ended.",
    "health": "Check the worker or beat of this host, for a container's health check.",
    "standalone": "Run Redis, a Prefect server, workers, beat and Flower on this machine.",
    "status": "Show the work pools, workers, slots and claims of the fleet.",
}


class Commands(click.Group):
    """The commands of ``COMMANDS``; an error of the dispatcher is one line, not a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Name the commands, also for shell completion."""
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a command."""
        if cmd_name not in COMMANDS:
            return None
        command = importlib.import_module(f"{__name__}.{cmd_name}").command
        assert isinstance(command, click.Command)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(sorted(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command."""
        try:
            return super().invoke(ctx)
        except errors.DispatcherError as error:
            raise click.ClickException(str(error)) from error


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(dispatcher.__version__, prog_name="dispatcher")
def main() -> None:
    """Run Prefect flow runs on a Celery fleet.

    The processes of the fleet are Celery's: see "celery -A dispatcher --help".
    """
