"""``dispatcher config``."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import click
from rich import box as boxes
from rich import console as consoles
from rich import table as tables
from rich.markup import escape

from dispatcher import settings
from dispatcher.settings import origins, prefect_files


@click.command
@click.option(
    "--output",
    type=click.Choice(["text", "json"]),
    default="text",
    show_default=True,
    help="A table, or a list of variable, value and source.",
)
def command(output: str) -> None:
    """Show every setting, and whether the environment, a file of Prefect's or nobody says it.

    Secrets are masked. What Prefect's files say counts for workers that are started in this very
    directory.
    """
    given = list(os.environ)
    found = prefect_files.read(os.environ, Path())
    listed = origins.list_all(settings.load(), given, found)
    if output == "json":
        click.echo(json.dumps([dataclasses.asdict(each) for each in listed], indent=2))
        return
    table = tables.Table("Setting", "Value", "From", box=boxes.SIMPLE)
    for each in listed:
        table.add_row(each.variable, escape(each.value), escape(each.source))
    consoles.Console(highlight=False).print(table)
