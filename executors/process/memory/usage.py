"""How much memory processes use together: what they share counts once."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterable
from pathlib import Path

import psutil

PROC = Path("/proc")


def resident_bytes(processes: Iterable[psutil.Process]) -> int:
    """The sum of what each has in memory; cheap, and too much where they share something."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            total += process.memory_info().rss
    return total


def used_bytes(processes: Iterable[psutil.Process]) -> int:
    """What the processes use, a page that several share divided among them (PSS, Linux only)."""
    total = 0
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            total += _used_by(process)
    return total


def _used_by(process: psutil.Process) -> int:
    if sys.platform != "linux":
        return int(process.memory_info().rss)
    return int(process.memory_full_info().pss)


def descendants(pid: int) -> list[psutil.Process]:
    """Children, grandchildren and so on of a process.

    From the kernel's own lists where it keeps them; psutil reads the table of all processes, which
    is too dear to be done several times a second.
    """
    found: list[psutil.Process] = []
    waiting = _children(pid)
    while waiting:
        child = waiting.pop()
        with contextlib.suppress(psutil.Error):
            found.append(psutil.Process(child))
            waiting += _children(child)
    return found


def _children(pid: int) -> list[int]:
    if not (PROC / "self/task").is_dir():
        with contextlib.suppress(psutil.Error):
            return [child.pid for child in psutil.Process(pid).children()]
        return []
    children: list[int] = []
    with contextlib.suppress(OSError):
        for task in (PROC / str(pid) / "task").iterdir():
            with contextlib.suppress(OSError):
                children += map(int, (task / "children").read_text().split())
    return children
