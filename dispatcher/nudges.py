"""Nudges: "a slot is free in this pool, poll now", many of them worth one poll."""

from __future__ import annotations

from collections.abc import Callable

from redis import Redis

from dispatcher import ledger

LIFETIME = 5.0  # seconds; a nudge whose poll was lost blocks the next one no longer than this


class Nudges:
    """One flag per pool: set by finished runs, taken by the poll that serves them."""

    def __init__(
        self, redis: Redis, send_poll: Callable[[str], None], *, prefix: str = ledger.PREFIX
    ) -> None:
        self._redis = redis
        self._send_poll = send_poll
        self._prefix = prefix

    def nudge(self, pool: str) -> None:
        """Ask for a poll, unless one is on its way already."""
        if self._redis.set(self._key(pool), "1", nx=True, px=int(LIFETIME * 1000)):
            self._send_poll(pool)

    def is_waiting(self, pool: str) -> bool:
        """Whether somebody nudged since the last take; leaves the nudge where it is."""
        return bool(self._redis.exists(self._key(pool)))

    def take(self, pool: str) -> bool:
        """Whether somebody nudged since the last take."""
        return bool(self._redis.delete(self._key(pool)))

    def _key(self, pool: str) -> str:
        return f"{self._prefix}nudge:{pool}"
