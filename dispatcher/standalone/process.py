"""One supervised process and its log file."""

from __future__ import annotations

import collections
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from dispatcher.standalone import tether
from dispatcher.standalone.component import Component

KILL_SECONDS = tether.KILL_SECONDS + 2.0  # then the tether itself is killed
POLL_SECONDS = 0.02
TAIL_LINES = 15
LOG_BYTES_KEPT = 10_000_000  # a larger log is put aside at the next start


class Process:
    """A component that runs, or does not, behind a tether (see ``dispatcher.standalone.tether``).

    The kernel tells the tether when the *thread* that started it ends, so ``start`` belongs in a
    thread that lives as long as the stack: the main one.
    """

    def __init__(
        self,
        component: Component,
        log_directory: Path,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.component = component
        self.log_path = log_directory / f"{component.name}.log"
        self.started_at = 0.0
        self._clock = clock
        self._sleep = sleep
        self._popen: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    def start(self) -> None:
        """Start the process in a session of its own, so that Ctrl-C reaches the supervisor only."""
        tethered = [sys.executable, "-I", "-S", tether.__file__, str(os.getpid())]
        self._rotate_log()
        self.component.prepare()
        with self.log_path.open("ab") as log:
            self._log_start = log.tell()
            self._popen = subprocess.Popen(
                [*tethered, *self.component.command],
                env=dict(self.component.environment),
                cwd=self.component.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.started_at = self._clock()

    @property
    def name(self) -> str:
        """The component's name."""
        return self.component.name

    @property
    def pid(self) -> int | None:
        """The tether's pid, whose descendants are the component's processes."""
        return self._popen.pid if self._popen else None

    @property
    def is_running(self) -> bool:
        """Whether the process was started and has not ended."""
        return self._popen is not None and self._popen.poll() is None

    @property
    def exit_code(self) -> int | None:
        """The exit code, as a shell reports it: 128 + signal number for a killed process."""
        return self._popen.poll() if self._popen else None

    @property
    def seconds_up(self) -> float:
        """Seconds since the last start."""
        return self._clock() - self.started_at

    def is_ready(self) -> bool:
        """Whether the component answers."""
        return self.is_running and self.component.is_ready()

    def wait(self, seconds: float, *, hurry: Callable[[], bool] = lambda: False) -> bool:
        """Wait until the process has ended, or somebody is in a hurry; return whether it has."""
        deadline = self._clock() + seconds
        while self.is_running and self._clock() < deadline and not hurry():
            self._sleep(POLL_SECONDS)
        return not self.is_running

    def stop(self, *, hurry: Callable[[], int] = lambda: 0) -> None:
        """Go through the stop steps until the process has ended, at the latest by killing it.

        Each increase of what ``hurry`` returns cuts the current step short.
        """
        for step in self.component.stop:
            if not self.is_running:
                return
            self.send(step.signal)
            before = hurry()
            self.wait(step.seconds, hurry=lambda before=before: hurry() > before)  # type: ignore[misc]
        self.kill()

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the component through its tether."""
        if self._popen:
            self._popen.send_signal(number)

    def kill(self) -> None:
        """End the process with every descendant now."""
        self.send(tether.KILL_SIGNAL)
        if not self.wait(KILL_SECONDS):
            self.send(signal.SIGKILL)
            self.wait(KILL_SECONDS)

    def tail(self) -> str:
        """Return the last lines that it has logged since its start."""
        with self.log_path.open("rb") as log:
            log.seek(self._log_start)
            lines = collections.deque(log, maxlen=TAIL_LINES)
        return b"".join(lines).decode(errors="replace").rstrip()

    def _rotate_log(self) -> None:
        if self.log_path.exists() and self.log_path.stat().st_size > LOG_BYTES_KEPT:
            self.log_path.replace(self.log_path.with_suffix(".log.1"))
