"""The demo's runs: which flow, with what, and how each has to end."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import dispatcher
from dispatcher.prefect_api import schemas

FLOWS_FILE = "flows.py"

COMPLETED = schemas.StateType.COMPLETED


@dataclasses.dataclass(frozen=True)
class Sample:
    """One run of the demo. With ``cancel`` it is cancelled as soon as it is Running."""

    name: str
    flow: str
    parameters: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    expected: schemas.StateType = COMPLETED
    cancel: bool = False

    @property
    def call(self) -> str:
        """What is run, as Python would write it."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.parameters.items())
        return f"{self.flow}({arguments})"


# The first ones are those that take long or end badly, so that they overlap with the others.
SAMPLES = (
    Sample("cancel-me", "long_running", expected=schemas.StateType.CANCELLED, cancel=True),
    Sample("crash", "crashing", expected=schemas.StateType.CRASHED),
    Sample("fail", "failing", expected=schemas.StateType.FAILED),
    Sample("retry", "flaky"),
    *(Sample(f"etl-{rows}", "etl", {"rows": rows}) for rows in (3, 5, 8)),
    *(Sample(f"hello-{name.lower()}", "hello", {"name": name}) for name in ("Ada", "Alan")),
    *(Sample(f"hello-{name.lower()}", "hello", {"name": name}) for name in ("Grace", "Edsger")),
    Sample("hello-world", "hello"),
)


def directory() -> Path:
    """Return where the flows' file is: in an installed package, or in a checkout beside it."""
    package = Path(dispatcher.__file__).parent
    packaged = package / "examples"
    return packaged if packaged.is_dir() else package.parent / "examples"
