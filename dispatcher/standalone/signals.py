"""Ctrl-C and its relatives, counted instead of raised, so that stopping is never interrupted."""

from __future__ import annotations

import signal
from types import FrameType
from typing import Any, Self

STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class StopRequests:
    """How often this process was asked to stop while the context was entered.

    Only the main thread can enter it.
    """

    def __init__(self) -> None:
        self._count = 0
        self._previous: dict[signal.Signals, Any] = {}

    def __call__(self) -> int:
        """Return the number of requests so far."""
        return self._count

    def __enter__(self) -> Self:
        self._previous = {number: signal.signal(number, self._count_one) for number in STOPPING}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _count_one(self, _number: int, _frame: FrameType | None) -> None:
        self._count += 1
