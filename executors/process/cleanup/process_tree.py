"""Finding and killing every process of a job, wherever in the process table it hides.

A process is known by its pid together with its start time (psutil's identity), so that a pid
which the system has given to somebody else meanwhile is never hit.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable

import psutil

# A killed process is gone within milliseconds, unless the kernel holds it in a system call.
SWEEP_SECONDS = 5.0
SWEEP_PAUSE_SECONDS = 0.02
# Whoever sweeps may itself be frozen for longer than that, with its first look done.
MIN_SWEEPS = 5

Predicate = Callable[[psutil.Process], bool]


def find(predicate: Predicate) -> list[psutil.Process]:
    """All living processes of this machine but this one that fulfil a condition."""
    found = []
    for pid in psutil.pids():
        with contextlib.suppress(psutil.Error, OSError):
            process = psutil.Process(pid)
            if pid != os.getpid() and predicate(process) and is_alive(process):
                found.append(process)
    return found


def descendants(pid: int) -> list[psutil.Process]:
    """Children, grandchildren and so on, the oldest first."""
    with contextlib.suppress(psutil.Error):
        children = psutil.Process(pid).children(recursive=True)
        return sorted(children, key=age_order)
    return []


def age_order(process: psutil.Process) -> tuple[float, int]:
    """Sorts the oldest first; the clock ticks too slowly to tell a child from its parent."""
    return process.create_time(), process.pid


def is_alive(process: psutil.Process) -> bool:
    """Whether a process still runs; one that only waits to be reaped does not."""
    with contextlib.suppress(psutil.Error):
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    return False


def in_session(session: int) -> Predicate:
    """Matches the processes of a session; its id is the pid of the process that opened it."""
    return lambda process: os.getsid(process.pid) == session


def with_variable(name: str, value: str) -> Predicate:
    """Matches processes that were started with a variable in their environment."""
    return lambda process: environment(process).get(name) == value


def environment(process: psutil.Process) -> dict[str, str]:
    """What a process was started with; empty where that may not be read."""
    with contextlib.suppress(psutil.Error, OSError):
        return process.environ()
    return {}


def holder_of_port(candidates: Iterable[psutil.Process], port: int | None) -> psutil.Process | None:
    """The first of the processes that has the end of a TCP connection at a local port."""
    for candidate in candidates:
        with contextlib.suppress(psutil.Error):
            ends = candidate.net_connections("tcp4")
            if any(end.laddr.port == port for end in ends):
                return candidate
    return None


def signal_group(group: int, number: signal.Signals) -> None:
    """Send a signal to a process group that may be gone already."""
    # macOS refuses to signal a group in which only zombies are left.
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)


def send(targets: Iterable[psutil.Process], number: signal.Signals) -> None:
    """Send a signal to each process that still exists and may be signalled."""
    for target in targets:
        with contextlib.suppress(psutil.Error):
            target.send_signal(number)


class Family:
    """The processes of one job besides the first: found by descent, or by a sign they carry."""

    def __init__(self, is_member: Predicate) -> None:
        self._is_member = is_member
        self._known: set[psutil.Process] = set()
        self._lock = threading.Lock()

    def remember(self, members: Iterable[psutil.Process]) -> None:
        """Keep members in mind that may soon be recognisable no more, as their parents die."""
        with self._lock:
            self._known.update(members)

    def known(self) -> list[psutil.Process]:
        """The members that were found until now and are alive."""
        with self._lock:
            return [member for member in self._known if is_alive(member)]

    def survivors(self) -> list[psutil.Process]:
        """Every member that is alive now, the oldest first.

        A parent that is killed before its children cannot react to their death.
        """
        with self._lock:
            self._known.update(find(self._is_member))
            for member in [member for member in self._known if is_alive(member)]:
                self._known.update(descendants(member.pid))
            self._known = {member for member in self._known if is_alive(member)}
            return sorted(self._known, key=age_order)

    def kill(self, timeout_seconds: float = SWEEP_SECONDS) -> list[psutil.Process]:
        """Kill all members, also those that are born meanwhile; return whom it did not get."""
        deadline = time.monotonic() + timeout_seconds
        sweeps = 0
        while survivors := self.survivors():
            if sweeps >= MIN_SWEEPS and time.monotonic() > deadline:
                return survivors
            send(survivors, signal.SIGKILL)
            time.sleep(SWEEP_PAUSE_SECONDS)
            sweeps += 1
        return []
