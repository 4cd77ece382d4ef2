"""Beat: on which hosts it is alive, and what it says while it cannot send.

Every tick that it sends is a sign of life, kept in Redis.
"""

from __future__ import annotations

import contextlib
import logging

from celery import beat
from kombu import exceptions
from redis import Redis, RedisError

from dispatcher import ledger

LIFETIME = 60.0  # seconds; many times the usual interval between two ticks


class Beats:
    """The hosts whose beat has sent a tick of late."""

    def __init__(self, redis: Redis, *, prefix: str = ledger.PREFIX) -> None:
        self._redis = redis
        self._prefix = prefix

    def report(self, host: str, *, lifetime_seconds: float = LIFETIME) -> None:
        """Note that beat has just sent a tick; raises nothing, since the next one comes soon."""
        with contextlib.suppress(RedisError):
            self._redis.set(self._key(host), "1", px=int(lifetime_seconds * 1000))

    def is_alive(self, host: str) -> bool:
        """Whether a report of the host's beat is still valid."""
        return bool(self._redis.exists(self._key(host)))

    def _key(self, host: str) -> str:
        return f"{self._prefix}beat:{host}"


class BrokerOutage(logging.Filter):
    """One line when beat can send no ticks any more, in place of a traceback for each of them.

    Belongs on the logger of :mod:`celery.beat`. Other failures keep their tracebacks.
    """

    def __init__(self) -> None:
        super().__init__()
        self._noted = False

    def end(self) -> None:
        """Note that a tick was sent."""
        self._noted = False

    def filter(self, record: logging.LogRecord) -> bool:
        """Shorten the record of a tick that could not be sent; drop it if it is not the first."""
        error = record.exc_info[1] if record.exc_info else None
        if not isinstance(error, beat.SchedulingError) or not _is_of_broker(error.__context__):
            return True
        record.msg, record.args = "beat can send no ticks until Redis is back: %s", (error,)
        record.exc_info = None
        is_first, self._noted = not self._noted, True
        return is_first


def _is_of_broker(error: BaseException | None) -> bool:
    return isinstance(error, (exceptions.OperationalError, RedisError, OSError))
