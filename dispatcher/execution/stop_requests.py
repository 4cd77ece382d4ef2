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

from dispatcher import planning

logger = logging.getLogger(__name__)


# What Celery's pool sends for a soft time limit; its own handler would raise an exception in the
# middle of whatever the task does.
TIME_LIMIT_SIGNAL = signal.SIGUSR1


class StopRequests:
    """Holds signals back while a task executes, and tells why it is to stop.

    SIGTERM is delivered once the task is through.
    """

    def __init__(self, wake: Callable[[], None]) -> None:
        self._wake = wake
        self.requested = False
        self._is_over_limit = False

    @property
    def reason(self) -> planning.StopReason | None:
        """Why the tasks of this process are to stop their jobs; ``None`` if they are not."""
        if self.requested:
            return planning.StopReason.SHUTDOWN
        return planning.StopReason.TIME_LIMIT if self._is_over_limit else None

    @contextlib.contextmanager
    def held_back(self) -> Iterator[None]:
        """Turn SIGTERM and a time limit into a ``reason`` for the block.

        Afterwards SIGTERM does what it always does. Only the main thread can; in others, on a
        threads pool, no signal arrives anyway, and the worker calls :meth:`request`.
        """
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        self._is_over_limit = False
        previous = signal.signal(signal.SIGTERM, self._on_signal)
        previous_limit = signal.signal(TIME_LIMIT_SIGNAL, self._on_time_limit)
        try:
            yield
        finally:
            signal.signal(TIME_LIMIT_SIGNAL, previous_limit)
            signal.signal(signal.SIGTERM, previous)
            if self.requested:
                os.kill(os.getpid(), signal.SIGTERM)

    def request(self) -> None:
        """Have the tasks of this process stop their jobs; safe in a signal handler."""
        self.requested = True
        self._wake()

    def _on_time_limit(self, _signum: int, _frame: FrameType | None) -> None:
        self._is_over_limit = True
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
