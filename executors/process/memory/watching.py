"""Looking at what a job uses, and holding it to a limit where the kernel cannot be told to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from types import TracebackType

import psutil

from executors.process.memory import usage

# A process that writes to memory as fast as it can takes 200 to 500 MB in this time.
LOOK_SECONDS = 0.2
# How often the exact amount is read, which costs milliseconds.
MEASURE_SECONDS = 5.0


class Watch:
    """Measures a job, and kills it as soon as its processes are seen to use more than they may.

    A context manager: the watch ends with the block. Reading what a process uses may take as long
    as that one keeps the kernel busy, so it has a thread that nobody waits for. ``members`` are
    the job's processes now, ``kill`` ends all of them; without a ``limit`` (bytes) nothing does.
    """

    def __init__(
        self,
        limit: int | None,
        members: Callable[[], Iterable[psutil.Process]],
        kill: Callable[[], None],
        *,
        measure_seconds: float = MEASURE_SECONDS,
    ) -> None:
        self.used: int | None = None
        """The bytes in use when they were last measured."""
        self.peak = 0
        """The most bytes that were measured."""
        self._limit = limit
        self._members = members
        self._kill = kill
        self._measure_seconds = measure_seconds
        self._measured_at = time.monotonic()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, name="memory-watch", daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    @property
    def is_exceeded(self) -> bool:
        """Whether the job has used more than it may."""
        return self._limit is not None and self.peak > self._limit

    def look(self) -> None:
        """Look once, and kill the job if it uses too much."""
        members = list(self._members())
        # What processes share is counted for each here, so below the limit there is no doubt.
        suspicious = self._limit is not None and usage.resident_bytes(members) > self._limit
        if suspicious or time.monotonic() - self._measured_at >= self._measure_seconds:
            self.used = usage.used_bytes(members)
            self.peak = max(self.peak, self.used)
            self._measured_at = time.monotonic()
        if self.is_exceeded:
            self._kill()

    def _run(self) -> None:
        pause = self._measure_seconds if self._limit is None else LOOK_SECONDS
        while not self._ended.wait(pause) and not self.is_exceeded:
            self.look()
