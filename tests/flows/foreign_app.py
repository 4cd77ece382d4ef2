"""A Celery application that has nothing to do with the dispatcher, with Celery's own defaults."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery

app = Celery("foreign", broker=os.environ["FOREIGN_BROKER"])


@app.task(name="foreign.note")
def note(line: str) -> None:
    """Write a line into the application's file."""
    with Path(os.environ["FOREIGN_FILE"]).open("a") as file:
        file.write(f"{line}\n")
