"""What beat says while it cannot send."""

from __future__ import annotations

import logging

from celery import beat
from kombu import exceptions
from redis import RedisError


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
