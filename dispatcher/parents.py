"""Ending with the parent process, where nobody else would see to it; Linux only."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_BUSY_SECONDS = 0.5  # between two looks whether it still is
_EXIT_WORKER_GONE = 128 + signal.SIGHUP


def die_with_parent() -> None:
    """Have this process end when its parent does, however that ends.

    Celery's embedded beat would otherwise go on alone after its worker was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


class WorkerWatch:
    """Ends a pool child whose worker is gone as soon as it executes nothing any more.

    An idle child ends by itself when it finds its pipe from the worker closed, but each holds the
    pipes of those before it open: when a worker is killed while it starts them, some would stay.
    """

    def __init__(self, is_busy: Callable[[], bool]) -> None:
        self._is_busy = is_busy
        self._worker_pid = 0

    def note_worker(self) -> None:
        """Note that this process is the worker; before it has children."""
        self._worker_pid = os.getpid()

    def begin(self) -> None:
        """Watch the worker from a thread, in a pool child; nothing in the worker itself."""
        if sys.platform != "linux" or os.getpid() == self._worker_pid:
            return
        threading.Thread(target=self._watch, name="worker-watch", daemon=True).start()

    def _watch(self) -> None:
        self._wait_for_worker()
        while self._is_busy():
            time.sleep(_BUSY_SECONDS)
        os._exit(_EXIT_WORKER_GONE)

    def _wait_for_worker(self) -> None:
        try:
            descriptor = os.pidfd_open(self._worker_pid)
        except ProcessLookupError:
            return
        # The number may be another process' by now.
        if os.getppid() == self._worker_pid:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            poll.poll()
        os.close(descriptor)
