"""What time it is by the Prefect server's clock, as the ``Date`` of its answers tells."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from email import utils

# Answers say whole seconds, and a busy server's say them late; a smaller difference is none.
TOLERANCE_SECONDS = 3.0
# A late answer makes the server's clock look slow, so the fastest of the last ones is believed.
SAMPLES = 10


class ServerClock:
    """Due times are the server's, and the clock of a worker's host may be minutes off.

    ``clock`` is that of this host, in seconds since the epoch; ``offset`` is how many seconds the
    server's is ahead of it. Any thread may use it.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._samples: deque[float] = deque(maxlen=SAMPLES)
        self.offset = 0.0
        self._last_date = ""

    def note(self, date: str | None) -> None:
        """Learn from an answer's ``Date``; one that is missing or no date says nothing."""
        if not date or date == self._last_date:
            return
        self._last_date = date
        try:
            told = utils.parsedate_to_datetime(date).timestamp()
        except ValueError:
            return
        self._samples.append(told - self._clock())
        offset = max(tuple(self._samples))
        self.offset = offset if abs(offset) > TOLERANCE_SECONDS else 0.0

    def now(self) -> datetime:
        """The server's time."""
        return datetime.fromtimestamp(self._clock() + self.offset, UTC)
