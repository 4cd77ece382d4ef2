"""Starts the components in order, keeps them up, stops them in order."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from dispatcher.standalone import errors
from dispatcher.standalone.component import Component
from dispatcher.standalone.process import Process

TICK_SECONDS = 0.1
FIRST_BACK_OFF_SECONDS = 0.5  # doubles with every further death
DEATHS_ALLOWED = 4
DEATHS_WINDOW_SECONDS = 120.0  # a component that was up for this long starts a new count


class Supervised:
    """A process with what the supervisor remembers of it."""

    def __init__(self, process: Process) -> None:
        self.process = process
        self.deaths = 0
        self.is_ready = False
        self.restart_at: float | None = None

    @property
    def is_late(self) -> bool:
        """Whether it runs but has not become ready in its time."""
        return self.process.seconds_up > self.process.component.ready_seconds


class Supervisor:
    """Runs components in the order given, which must put each after those that it needs.

    ``report`` takes one line for the user. ``stop_requests`` counts how often the user has asked
    to stop: the first ends ``run``, each further one cuts the step of ``stop`` short that is being
    waited for. Everything happens in the calling thread, which should be the main one.
    """

    def __init__(
        self,
        components: Sequence[Component],
        log_directory: Path,
        *,
        report: Callable[[str], None],
        stop_requests: Callable[[], int] = lambda: 0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._report = report
        self._stop_requests = stop_requests
        self._clock = clock
        self._sleep = sleep
        self._supervised = {
            component.name: Supervised(Process(component, log_directory, clock=clock, sleep=sleep))
            for component in components
        }

    @property
    def processes(self) -> list[Process]:
        """The processes in start order."""
        return [each.process for each in self._supervised.values()]

    def start(self) -> None:
        """Start every component as soon as those that it needs are ready; wait for all.

        Raises StopRequested, or ComponentFailed when one ends or is late: at its first start a
        component is not given a second chance, since the cause is nearly always a lasting one.
        """
        while not all(each.is_ready for each in self._supervised.values()):
            self._check_not_stopped()
            for each in self._supervised.values():
                self._advance(each)
            self._sleep(TICK_SECONDS)

    def watch(self) -> None:
        """Look after every component once: restart the dead ones when their back-off is over.

        Raises ComponentFailed when one keeps dying.
        """
        for each in self._supervised.values():
            self._look_after(each)

    def run(self) -> None:
        """Watch until asked to stop."""
        while not self._stop_requests():
            self.watch()
            self._sleep(TICK_SECONDS)

    def stop(self, order: Sequence[str]) -> None:
        """Stop the components in the order given, one after the other."""
        for name in order:
            process = self._supervised[name].process
            if process.is_running:
                self._report(f"stopping {name}")
                process.stop(hurry=self._stop_requests)

    def _check_not_stopped(self) -> None:
        if self._stop_requests():
            raise errors.StopRequested

    def _advance(self, each: Supervised) -> None:
        """Take the first start of a component one step further."""
        process = each.process
        if process.pid is None:
            if all(self._supervised[name].is_ready for name in process.component.needs):
                process.start()
        elif not each.is_ready:
            self._await_ready(each)
        elif not process.is_running:
            raise self._failure(each, f"ended with exit code {process.exit_code}")

    def _await_ready(self, each: Supervised) -> None:
        process = each.process
        if process.is_ready():
            each.is_ready = True
            address = f"  {process.component.address}" if process.component.address else ""
            self._report(f"{process.name} is ready after {process.seconds_up:.1f} s{address}")
        elif not process.is_running:
            raise self._failure(each, f"ended with exit code {process.exit_code}")
        elif each.is_late:
            raise self._failure(
                each, f"was not ready after {process.component.ready_seconds:.0f} s"
            )

    def _look_after(self, each: Supervised) -> None:
        process = each.process
        if each.restart_at is not None:
            if self._clock() >= each.restart_at:
                each.restart_at = None
                process.start()
        elif not process.is_running:
            self._died(each, f"ended with exit code {process.exit_code}")
        elif each.is_ready:
            return
        elif process.is_ready():
            each.is_ready = True
            self._report(f"{process.name} is back after {process.seconds_up:.1f} s")
        elif each.is_late:
            process.kill()
            self._died(each, f"was not ready after {process.component.ready_seconds:.0f} s")

    def _died(self, each: Supervised, what: str) -> None:
        """Plan the restart."""
        if each.process.seconds_up > DEATHS_WINDOW_SECONDS:
            each.deaths = 0
        each.deaths += 1
        each.is_ready = False
        if each.deaths > DEATHS_ALLOWED:
            raise self._failure(each, f"{what}, for the {each.deaths}th time in a row")
        back_off = FIRST_BACK_OFF_SECONDS * 2 ** (each.deaths - 1)
        each.restart_at = self._clock() + back_off
        self._report(f"{each.process.name} {what}; starting it again in {back_off:.1f} s")

    def _failure(self, each: Supervised, what: str) -> errors.ComponentFailed:
        process = each.process
        tail = process.tail() or "(nothing)"
        return errors.ComponentFailed(
            f"{process.name} {what}. The end of {process.log_path}:\n{tail}"
        )
