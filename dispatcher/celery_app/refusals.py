"""A broker that can be reached and refuses all the same, as Redis does while its disk is full."""

from __future__ import annotations

import logging
import time
from typing import Any

logger = logging.getLogger(__name__)

# How long a worker waits before it asks again: nothing else would keep it from that.
SECONDS = 2.0


class WaitsWhenRefused:
    """The part of a worker's consumer that hears of a broker's errors; before Celery's own."""

    pause = staticmethod(time.sleep)

    def on_connection_error_after_connected(self, exc: Exception) -> None:
        """Celery calls this before it connects again, and says only of what kind the error is."""
        if self._is_refusal(exc):
            logger.warning("the broker refuses what this worker asks for: %s", exc)
        super().on_connection_error_after_connected(exc)  # type: ignore[misc] # of Celery
        self._wait_after(exc)

    def on_connection_error_before_connected(self, exc: Exception) -> None:
        """Celery calls this if it could not even begin."""
        super().on_connection_error_before_connected(exc)  # type: ignore[misc] # of Celery
        self._wait_after(exc)

    def _wait_after(self, exc: Exception) -> None:
        if self._is_refusal(exc):
            self.pause(SECONDS)

    def _is_refusal(self: Any, exc: Exception) -> bool:
        return not isinstance(exc, self.connection_errors)
