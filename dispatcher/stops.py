"""Stopping: what a pool child makes of a request to stop, and a worker of one that lasts too long.

Celery sends SIGTERM to the children of a worker that shuts down cold, and would have it raise
``SystemExit`` in the middle of whatever the task does. Here the task stops its job first.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

logger = logging.getLogger(__name__)


class StopRequests:
    """Holds SIGTERM back while a task executes, and delivers it once the task is through."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.requested = False

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Turn SIGTERM into ``requested`` for the block, then let it do what it always does.

        Only the main thread can; in others, on a threads pool, the signal does not arrive anyway,
        and the worker calls :meth:`request`.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
            if self.requested:
                os.kill(os.getpid(), signal.SIGTERM)

    def request(self) -> None:
        """Have the tasks of this process stop their jobs; safe in a signal handler."""
        self.requested = True
        self._wake()

    def _on_signal(self, _signum: int, _frame: FrameType | None) -> None:
        self.request()


class StopTimeout:
    """Lets a worker that was asked to stop wait for its runs for so long and no longer.

    Celery itself waits for ever after SIGTERM, and its soft shutdown, which has a time-out,
    sleeps for the whole of it even with nothing left to wait for. ``seconds`` is ``None`` for no
    time-out.
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    def begin(self) -> None:
        """Begin to wait; what the process does meanwhile is its own business."""
        if self._seconds is None:
            return
        timer = threading.Timer(self._seconds, self._hurry)
        timer.name = "stop-timeout"
        timer.daemon = True
        timer.start()

    def _hurry(self) -> None:
        logger.warning(
            "the worker has not stopped within %g s (DISPATCHER_STOP_TIMEOUT); it stops its runs",
            self._seconds,
        )
        os.kill(os.getpid(), signal.SIGQUIT)
