"""What processes with all their descendants use: CPU seconds, and memory as PSS.

PSS divides each shared page among the processes that share it, so the sum over processes counts
everything once. Roots are the pids of :class:`dispatcher.standalone.process.Process`: tethers,
which adopt every orphan below them, so no ended process' CPU time is lost. A tether's own memory
is left out.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Self

import psutil

INTERVAL_SECONDS = 1.0
MIB = 1024 * 1024


def cpu_seconds(roots: Iterable[int]) -> float:
    """CPU time so far of the processes below the roots, ended ones included."""
    return sum(_cpu_seconds(process) for root in roots for process in _tree(root))


def pss_bytes(roots: Iterable[int]) -> int:
    """The memory of the processes below the roots, now."""
    return sum(_pss_bytes(process.pid) for root in roots for process in _tree(root)[1:])


def count(roots: Iterable[int]) -> int:
    """How many processes there are below the roots."""
    return sum(len(_tree(root)) - 1 for root in roots)


def machine_cpu_seconds() -> float:
    """CPU time so far of everything on the machine: to see who else was at work."""
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system + times.irq + times.softirq)


class MemorySampler:
    """Reads the memory below the roots at intervals, from a thread, while its context lasts."""

    def __init__(
        self,
        roots: Callable[[], Iterable[int]],
        *,
        interval_seconds: float = INTERVAL_SECONDS,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._roots = roots
        self._interval = interval_seconds
        self._monotonic = monotonic
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="memory-sampler", daemon=True)
        self.samples: list[tuple[float, float]] = []

    @property
    def peak_mib(self) -> float:
        """The most memory that was seen."""
        return max((mib for _, mib in self.samples), default=0.0)

    def __enter__(self) -> Self:
        self._started_at = self._monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            now = self._monotonic() - self._started_at
            self.samples.append((round(now, 1), round(pss_bytes(self._roots()) / MIB, 1)))
            if self._stopping.wait(self._interval):
                return


def _tree(root: int) -> list[psutil.Process]:
    try:
        process = psutil.Process(root)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def _cpu_seconds(process: psutil.Process) -> float:
    try:
        times = process.cpu_times()
    except psutil.NoSuchProcess:
        return 0.0
    return float(times.user + times.system + times.children_user + times.children_system)


def _pss_bytes(pid: int) -> int:
    return sum(int(line.split()[1]) * 1024 for line in _rollup(pid) if line.startswith("Pss:"))


def _rollup(pid: int) -> Iterator[str]:
    try:
        yield from Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        # It ended meanwhile.
        return
