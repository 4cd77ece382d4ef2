"""When a request to the Prefect API is sent again, and after how long a pause.

Follows Prefect's own client in what is worth repeating. It differs in how long it waits: a server
on SQLite answers 503 as a matter of routine and is ready again a moment later, so the first
pauses are short.
"""

from __future__ import annotations

import email.utils
from collections.abc import Callable
from dataclasses import dataclass

RETRYABLE_STATUS_CODES = frozenset({408, 429, 502, 503, 504})
# Added to a Retry-After at most, as a share of it, so that clients do not all return at once.
RETRY_AFTER_SPREAD = 0.2


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long a request is repeated; all times in seconds.

    No attempt begins later than ``budget_seconds`` after the first one, and there are never more
    than ``max_attempts`` of them.
    """

    max_attempts: int = 8
    budget_seconds: float = 30.0
    first_pause_seconds: float = 0.15
    longest_pause_seconds: float = 5.0

    def pause_seconds(self, attempt: int, at_least: float, random: Callable[[], float]) -> float:
        """How long to wait after the ``attempt``-th failure (counted from 1).

        Doubles from attempt to attempt, the upper half at random. ``at_least`` is what the server
        asked for, 0 if nothing.
        """
        full = min(self.first_pause_seconds * 2.0 ** (attempt - 1), self.longest_pause_seconds)
        own = full * (0.5 + 0.5 * random())
        return max(own, at_least * (1.0 + RETRY_AFTER_SPREAD * random()))


def retry_after_seconds(header: str | None, now: float) -> float:
    """What a ``Retry-After`` header asks for: seconds or an HTTP date; 0 if absent or unreadable.

    ``now`` is the time of day as :func:`time.time` gives it.
    """
    if not header:
        return 0.0
    if header.strip().isdigit():
        return float(header)
    try:
        moment = email.utils.parsedate_to_datetime(header)
    except ValueError:
        return 0.0
    return max(moment.timestamp() - now, 0.0)
