"""What the engine prepares at its first use of it, prepared before it is forked.

Standard library only; what belongs to Prefect is imported by the time it is needed.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from executors.process.fork_server.engine import prompt_heartbeats, shared_certificates


def rehearse() -> None:
    """Do what every run would do anew.

    What another version of Prefect does not know is left out.
    """
    for step in (
        complete_models,
        compile_patterns,
        shared_certificates.share,
        prompt_heartbeats.stop_promptly,
    ):
        with contextlib.suppress(Exception):
            step()


def complete_models() -> None:
    """Build the validators that Prefect's models leave for when they are needed."""
    from pydantic import BaseModel

    for model in set(_descendants(BaseModel)):
        if model.__module__.startswith("prefect.") and not model.__pydantic_complete__:
            model.model_rebuild(raise_errors=False)


def compile_patterns() -> None:
    """Compile the regular expressions that colour a line of log; ``re`` remembers them."""
    from prefect.logging.highlighters import PrefectConsoleHighlighter
    from rich.text import Text

    PrefectConsoleHighlighter().highlight(Text(""))


def _descendants(model: type[Any]) -> Iterator[type[Any]]:
    for each in model.__subclasses__():
        yield each
        yield from _descendants(each)
