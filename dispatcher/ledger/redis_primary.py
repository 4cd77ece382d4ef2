"""Connections to whoever has the ledger now, where that may become another server.

Behind Sentinels it is the primary. In a cluster it is one node at a time, too, since all keys of a
ledger have one hash tag: one Redis, with scripts and transactions as everywhere. That it has moved
on is seen by what a server answers, and is an outage until another one has all of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import redis
from redis import connection, exceptions

Address = tuple[str, int]
Find = Callable[[], Address]
Connect = Callable[[Address], redis.Redis]

MOVED_ON = (
    redis.ReadOnlyError,
    exceptions.AskError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
)


def find_node(nodes: Iterable[Address], key: str, connect: Connect) -> Address:
    """Ask nodes of a cluster, one after the other, who has a key.

    Raises:
        redis.ConnectionError: none of them knows now.
    """
    reasons: list[str] = []
    for address in nodes:
        try:
            with connect(address) as client:
                client.exists(key)
        except exceptions.MovedError as told:
            # Without a host it is the one that was asked.
            return told.host or address[0], told.port
        except (redis.ConnectionError, redis.TimeoutError, exceptions.ClusterDownError) as error:
            reasons.append(str(error))
        else:
            return address
    raise redis.ConnectionError(f"no node of the cluster has the ledger now: {'; '.join(reasons)}")


class _Follows:
    """The part of a connection that looks for its server each time it connects."""

    def __init__(self, *, find: Find, **options: Any) -> None:
        self._find = find
        super().__init__(**options)

    def connect_check_health(self: Any, *args: Any, **options: Any) -> None:
        # All ways to connect come here, those of a command that is tried again as well.
        if not self.is_connected:
            self.host, self.port = self._find()
        super().connect_check_health(*args, **options)  # type: ignore[misc] # of redis-py

    def read_response(self: Any, *args: Any, **options: Any) -> Any:
        try:
            return super().read_response(*args, **options)  # type: ignore[misc] # of redis-py
        except MOVED_ON as error:
            self.disconnect()
            raise redis.ConnectionError(f"the ledger is on another server now: {error}") from None


class FollowingConnection(_Follows, connection.Connection):
    """A connection by TCP; ``find`` tells who has the ledger."""


class FollowingTlsConnection(_Follows, connection.SSLConnection):
    """The same by TLS."""
