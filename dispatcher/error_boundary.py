"""The error boundary of the tasks: one line for what an operator can mend, no traceback."""

from __future__ import annotations

import logging
from collections.abc import Callable

from kombu import exceptions
from redis import RedisError

from dispatcher import errors

logger = logging.getLogger(__name__)

# The last is what Celery makes of a broker that is away while a task is sent or revoked.
EXPECTED = (errors.DispatcherError, RedisError, exceptions.OperationalError)


class Ticks:
    """Runs the scheduled work of each pool; a failure is reported when it begins and ends.

    ``is_served`` tells whether a pool is one of the fleet's, ``begin`` whether work of a name has
    not begun yet within so many seconds.
    """

    def __init__(
        self, is_served: Callable[[str], bool], begin: Callable[[str, float], bool]
    ) -> None:
        self._is_served = is_served
        self._begin = begin
        self._failing: set[tuple[str, str]] = set()

    def run(
        self, task: str, pool: str, work: Callable[[], object], *, interval: float = 0.0
    ) -> str | None:
        """Do one tick's work; return its result as text, ``None`` if it failed as expected.

        Ticks that lie in the queue, or come from more than one beat, are more than one in an
        ``interval`` (in seconds); the first of them does the work.
        Other errors than the dispatcher's, Redis' and the broker's pass: they are faults of ours.
        """
        try:
            if not self._is_served(pool):
                logger.warning("%s: no worker has work pool %r among its own", task, pool)
                return None
            if not self._begin(f"{task}:{pool}", interval):
                return "done of late"
            result = str(work())
        except EXPECTED as error:
            if (task, pool) not in self._failing:
                logger.warning("%s of work pool %r fails: %s", task, pool, error)
            self._failing.add((task, pool))
            return None
        if (task, pool) in self._failing:
            logger.info("%s of work pool %r works again", task, pool)
        self._failing.discard((task, pool))
        return result


def run_claim(flow_run_id: str, work: Callable[[], str]) -> str:
    """Carry out one claim; what fails as expected leaves the claim to recovery."""
    try:
        return work()
    except EXPECTED as error:
        extra = {"flow_run_id": flow_run_id}
        logger.error("flow run %s is left to recovery: %s", flow_run_id, error, extra=extra)
        return f"left to recovery: {error}"
