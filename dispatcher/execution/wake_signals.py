"""Wake-ups: a signal to a pool child that cuts short the waits of its execute tasks.

A signal carries no address (Celery's revoke may hit the wrong task), so it decides nothing: who
is woken looks at the ledger. Self-pipes, because a lock taken in a signal handler can deadlock.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
from collections.abc import Iterator
from types import FrameType

WAKE_SIGNAL = signal.SIGUSR2


class Wakeup:
    """A wait that can be cut short from a signal handler or from another thread."""

    def __init__(self) -> None:
        self._read_end, self._write_end = os.pipe()
        os.set_blocking(self._read_end, False)
        os.set_blocking(self._write_end, False)

    def wait(self, seconds: float) -> None:
        """Wait until :meth:`set` or for ``seconds``; what was set before counts too."""
        # Not select(), which knows no descriptor from 1024 on.
        poll = select.poll()
        poll.register(self._read_end, select.POLLIN)
        if poll.poll(seconds * 1000):
            os.read(self._read_end, 4096)

    def set(self) -> None:
        """End the present wait, or else the next one."""
        # A full pipe wakes as well as a fuller one.
        with contextlib.suppress(BlockingIOError):
            os.write(self._write_end, b"w")

    def close(self) -> None:
        """Give the pipe back."""
        os.close(self._read_end)
        os.close(self._write_end)


class Wakeups:
    """The wake-ups of this process's execute tasks; one signal sets them all."""

    def __init__(self) -> None:
        self._open: tuple[Wakeup, ...] = ()
        self._lock = threading.Lock()

    def install(self) -> None:
        """Make ``WAKE_SIGNAL`` harmless to this process, and useful; main thread only."""
        signal.signal(WAKE_SIGNAL, self._on_signal)

    @contextlib.contextmanager
    def open(self) -> Iterator[Wakeup]:
        """A wake-up for the length of one task."""
        wakeup = Wakeup()
        # Replaced, never changed in place: the handler, which takes no lock, may run any time.
        with self._lock:
            self._open = (*self._open, wakeup)
        try:
            yield wakeup
        finally:
            with self._lock:
                self._open = tuple(other for other in self._open if other is not wakeup)
            wakeup.close()

    def wake_all(self) -> None:
        """Wake every task of this process; safe in a signal handler."""
        for wakeup in self._open:
            wakeup.set()

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.wake_all()
