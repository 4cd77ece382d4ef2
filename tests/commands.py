"""Runs ``dispatcher …`` as a user does, and finds whatever it leaves behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Self

import psutil

from tests import waiting

MARKER = "DISPATCHER_TEST_MARKER"
END_SECONDS = 90.0

_COMMAND = (sys.executable, "-c", "from dispatcher.cli import main; main()")


class Command:
    """A running ``dispatcher`` command in a session of its own.

    Every process that it starts inherits a marker in its environment, by which ``processes`` finds
    them all, whatever their parents are.
    """

    def __init__(
        self, *arguments: str, output: Path, environment: Mapping[str, str] | None = None
    ) -> None:
        self._marker = uuid.uuid4().hex
        self._output = output
        with output.open("wb") as file:
            self._popen = subprocess.Popen(
                [*_COMMAND, *arguments],
                env={**_inherited(output.parent), **(environment or {}), MARKER: self._marker},
                cwd=output.parent,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        """What it has printed so far."""
        return self._output.read_text()

    def wait_for_output(self, text: str, *, seconds: float) -> None:
        """Wait until it has printed a text."""

        def is_there() -> bool:
            assert text in self.output or self._popen.poll() is None, self.output
            return text in self.output

        waiting.wait_for(is_there, seconds=seconds, every=0.1, what=f"it prints {text!r}")

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, and to no other process."""
        self._popen.send_signal(number)

    def wait(self, seconds: float = END_SECONDS) -> int:
        """Return its exit code once it has ended."""
        return self._popen.wait(seconds)

    def processes(self) -> list[psutil.Process]:
        """All living processes that descend from it, itself included."""
        return [each for each in psutil.process_iter() if self._is_ours(each)]

    def wait_for_no_process(self, seconds: float) -> None:
        """Wait until nothing of it is left."""
        waiting.wait_for(
            lambda: not self.processes(), seconds=seconds, every=0.1, what="no process is left"
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._popen.poll() is None:
            self._popen.kill()
            self._popen.wait()
        for each in self.processes():
            each.kill()

    def _is_ours(self, process: psutil.Process) -> bool:
        try:
            return process.environ().get(MARKER) == self._marker
        except psutil.Error:
            return False


def _inherited(directory: Path) -> dict[str, str]:
    """The tests' own environment; where Python may not cache modules, with a cache of its own.

    Without one, every interpreter of the stack would compile Prefect again, for five seconds.
    """
    inherited = dict(os.environ)
    if inherited.pop("PYTHONDONTWRITEBYTECODE", None):
        inherited.setdefault("PYTHONPYCACHEPREFIX", str(directory / "pycache"))
    return inherited
