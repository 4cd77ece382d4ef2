"""Prefect's heartbeats, without a run waiting for them at its end. Standard library only."""

from __future__ import annotations

import importlib
import sys
import threading
import time
from collections.abc import Callable
from typing import Any


class PromptTime:
    """The ``time`` module, but a sleep of a thread that is told to stop ends at once.

    The thread that sends a flow's heartbeats looks once a second whether it is to stop, and the
    run's end is not told before that: up to a second, which for a short flow is most of its time.
    """

    def __init__(self, sleep: Callable[[float], None] = time.sleep) -> None:
        self._sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(time, name)

    def sleep(self, seconds: float) -> None:
        """As the function of that name in ``time``."""
        # What Prefect's loop looks at. A version of it without that sleeps as it did.
        stop = sys._getframe(1).f_locals.get("stop_event")
        if isinstance(stop, threading.Event):
            stop.wait(seconds)
        else:
            self._sleep(seconds)


def stop_promptly() -> None:
    """Have the engine's own sleeps end when they are to; nobody else's are touched."""
    engine: Any = importlib.import_module("prefect.flow_engine")
    if engine.time is time:
        engine.time = PromptTime()
