"""The work pools that a whole fleet serves, whatever each of its workers does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from dispatcher.ledger import fleet


class ServedPools:
    """The pools of this process' settings and those of the fleet's other workers.

    Every method may raise :class:`redis.RedisError`.
    """

    def __init__(
        self, workers: fleet.Fleet, own: Sequence[str], own_queues: Sequence[str] = ()
    ) -> None:
        self._fleet = workers
        self._own = tuple(own)
        self._own_queues = tuple(own_queues)

    def names(self) -> tuple[str, ...]:
        """Those that are served, or were of late: their runs have to be looked after."""
        return tuple(dict.fromkeys((*self._own, *self._fleet.pools())))

    def live(self) -> tuple[str, ...]:
        """Those that somebody serves now."""
        pools = (pool for node in self._fleet.nodes() for pool in node.pools or ())
        return tuple(dict.fromkeys((*self._own, *sorted(pools))))

    def includes(self, pool: str) -> bool:
        """Whether a pool is one of :meth:`names`."""
        return pool in self._own or pool in self._fleet.pools()

    def queues(self) -> Mapping[str, tuple[str, ...]]:
        """The names of the work queues that are served of each pool, none for all of them."""
        nodes = self._fleet.nodes()
        found: dict[str, tuple[str, ...]] = {}
        for pool in self.names():
            queues = [node.work_queues for node in nodes if node.pools and pool in node.pools]
            if not queues:
                found[pool] = self._own_queues
            elif all(queues):
                found[pool] = tuple(sorted({name for names in queues for name in names}))
            else:
                found[pool] = ()
        return found
