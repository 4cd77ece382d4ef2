"""Nudges: "a slot is free in this pool, poll now", many of them worth one poll."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cached_property
from typing import Any

from redis import Redis

from dispatcher.ledger import keys, locks, scripts

LIFETIME = 5.0  # seconds; a nudge whose poll was lost blocks the next one no longer than this


def lock_name(pool: str) -> str:
    """The lock that a poll of a pool holds while it is at work."""
    return f"poll:{pool}"


class PollNudges:
    """One nudge at most per pool: given by finished runs, taken by the poll that serves them.

    A poll at work is not sent another one: it would find the lock taken. So whoever holds that
    lock looks for a nudge once more after giving it up.
    """

    def __init__(
        self,
        redis: Redis,
        send_poll: Callable[[str], None],
        *,
        prefix: str = keys.PREFIX,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self._redis = redis
        self._send_poll = send_poll
        self._prefix = prefix
        self._wanting = f"{prefix}wanting"
        self._wall_clock = wall_clock

    def nudge(self, pool: str) -> None:
        """Ask for a poll, unless one is at work or on its way already."""
        touched = [self._key(pool), locks.key(lock_name(pool), prefix=self._prefix)]
        if self._script(touched, [int(LIFETIME * 1000)]):
            self._send_poll(pool)

    def slot_freed(self, pool: str) -> None:
        """Ask for a poll of the pool whose run has left a slot, and of one that wants for slots."""
        self.nudge(pool)
        # In turn, since the first may have no use for this very slot.
        longest: Any = self._redis.zrange(self._wanting, 0, 1)
        for other in [name for name in longest if name != pool][:1]:
            self._redis.zadd(self._wanting, {other: self._wall_clock()}, xx=True)
            self.nudge(other)

    def want(self, pool: str) -> None:
        """Note that runs of a pool may be due for which there was no slot."""
        self._redis.zadd(self._wanting, {pool: self._wall_clock()}, nx=True)

    def want_no_more(self, pool: str) -> None:
        """Note that every due run of a pool has a slot."""
        self._redis.zrem(self._wanting, pool)

    def is_waiting(self, pool: str) -> bool:
        """Whether somebody nudged since the last take; leaves the nudge where it is."""
        return bool(self._redis.exists(self._key(pool)))

    def take(self, pool: str) -> bool:
        """Whether somebody nudged since the last take."""
        return bool(self._redis.delete(self._key(pool)))

    def wait(self, pool: str, seconds: float) -> bool:
        """Take a nudge that is there or comes within some time; whether there was one."""
        if seconds <= 0:  # which Redis would take for ever
            return self.take(pool)
        return self._redis.blpop([self._key(pool)], timeout=seconds) is not None

    def _key(self, pool: str) -> str:
        return f"{self._prefix}nudges:{pool}"

    @cached_property
    def _script(self) -> Any:
        return scripts.script(self._redis, "nudge")
