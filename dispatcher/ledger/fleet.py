"""The fleet's slots: each Celery worker reports its own, the poller adds them up.

A report lives in Redis for a few seconds, so a dead or frozen worker is out of the sum as fast,
and no broker round trip (which waits for the slowest worker) is needed to count.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from redis import Redis, RedisError

from dispatcher.ledger import keys

REPORT_INTERVAL = 1.0  # seconds
REPORT_LIFETIME = 5.0  # seconds
# For so long the runs of a pool are looked after when its last worker has gone.
POOL_LIFETIME = 86_400.0  # seconds

# When a worker that was started anew under its old name would have come.
NAME_LIFETIME = 3600.0  # seconds

DRAINING = "it is being drained"

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Node:
    """One Celery worker: ``slots`` is how many runs it can execute at once.

    One that is ``draining`` takes no new runs, so it has no slots. ``held_up`` says why it takes
    fewer runs than it could, if somebody has told it so.

    It executes runs of its ``pools``, and of their queues of the names ``work_queues``, if there
    are any. A worker of a version that does not say its pools has ``None``, and executes all.
    ``dropped`` counts the messages that it received and that were none of the dispatcher's.
    ``worker_name`` and ``prefect``, the API's address without credentials, are those of its
    settings; empty in a version that does not say them.
    """

    name: str
    pid: int
    slots: int
    serves_control: bool
    version: str
    draining: bool = False
    held_up: str = ""
    pools: tuple[str, ...] | None = None
    work_queues: tuple[str, ...] = ()
    dropped: int = 0
    worker_name: str = ""
    prefect: str = ""

    @property
    def key(self) -> str:
        """Tells apart two workers that were given one name on one host."""
        return f"{self.name}:{self.pid}"

    def serves(self, pool: str) -> bool:
        """Whether it executes runs of a pool."""
        return self.pools is None or pool in self.pools


class Fleet:
    """The Celery workers that are alive, as they report themselves in Redis."""

    def __init__(self, redis: Redis, *, prefix: str = keys.PREFIX) -> None:
        self._redis = redis
        self._alive = f"{prefix}nodes:alive"
        self._details = f"{prefix}nodes"
        self._draining = f"{prefix}nodes:draining"
        self._pools = f"{prefix}pools"
        self._names = f"{prefix}nodes:names"
        self._left: set[str] = set()

    def report(self, node: Node, *, lifetime_seconds: float = REPORT_LIFETIME) -> None:
        """Say that a worker is alive; forgotten after ``lifetime_seconds`` by Redis' clock."""
        if node.key in self._left:
            return
        expires = self._now() + lifetime_seconds
        pipeline = self._redis.pipeline()
        pipeline.hset(self._details, node.key, json.dumps(asdict(node)))
        pipeline.zadd(self._alive, {node.key: expires})
        pipeline.zadd(self._names, {node.name: expires})
        if node.pools:
            pipeline.zadd(self._pools, dict.fromkeys(node.pools, expires))
        pipeline.execute()

    def leave(self, key: str) -> None:
        """Take a worker out of the fleet at once: it starts no more runs."""
        pipeline = self._redis.pipeline()
        pipeline.zrem(self._alive, key)
        pipeline.hdel(self._details, key)
        pipeline.srem(self._draining, key)
        pipeline.execute()

    def leave_for_good(self, key: str) -> None:
        """Take a worker of this process out of the fleet, whatever it reports afterwards."""
        self._left.add(key)
        self.leave(key)

    def drain(self, node: Node) -> None:
        """Have a worker take no new runs until it is started anew; it notices by itself."""
        self._redis.sadd(self._draining, node.key)

    def is_draining(self, node: Node) -> bool:
        """Whether a worker is to take no new runs."""
        return bool(self._redis.sismember(self._draining, node.key))

    def nodes(self) -> list[Node]:
        """The workers that are alive now, by name."""
        pipeline = self._redis.pipeline(transaction=False)
        pipeline.time()
        pipeline.zrange(self._alive, 0, -1, withscores=True)
        pipeline.hgetall(self._details)
        (seconds, microseconds), expiries, details = pipeline.execute()
        now = seconds + microseconds / 1_000_000
        alive = sorted(key for key, expires in expiries if expires > now)
        return [_node(details[key]) for key in alive if key in details]

    def names(self) -> frozenset[str]:
        """The names of the workers that are alive now."""
        return frozenset(node.name for node in self.nodes())

    def slots(self) -> int:
        """How many runs the fleet can execute at once."""
        return sum(node.slots for node in self.nodes())

    def pools(self) -> tuple[str, ...]:
        """The work pools that any worker has served of late, by name."""
        since = self._now() - POOL_LIFETIME
        names: Any = self._redis.zrange(self._pools, since, "+inf", byscore=True)
        return tuple(sorted(names))

    def forget_dead(self) -> None:
        """Drop the reports of workers that went away without a word."""
        dead: Any = self._redis.zrange(self._alive, "-inf", self._now(), byscore=True)
        for key in dead:
            self.leave(key)

    def gone_for_good(self) -> list[str]:
        """The names of workers that went long ago, each told once."""
        names: Any = self._redis.zrange(
            self._names, "-inf", self._now() - NAME_LIFETIME, byscore=True
        )
        return [name for name in names if self._redis.zrem(self._names, name)]

    def _now(self) -> float:
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1_000_000


def _node(text: str) -> Node:
    # A worker of a later version may say more of itself.
    known = {field.name for field in fields(Node)}
    said = {name: value for name, value in json.loads(text).items() if name in known}
    for name in ("pools", "work_queues"):
        if said.get(name) is not None:
            said[name] = tuple(said[name])
    return Node(**said)


class NodeReporter:
    """Reports one worker from a thread of its own.

    Not from Celery's timer: that stops at the start of a warm shutdown. The first report is made
    before :meth:`start` returns where Redis answers, so that a worker that is ready is counted.
    ``describe`` tells what the worker is now, for each report.
    ``on_drain`` is called, once, when the worker is to take no new runs, and ``on_report`` with
    each report; it may raise :class:`redis.RedisError`.
    """

    def __init__(
        self,
        fleet: Fleet,
        describe: Callable[[], Node],
        *,
        on_drain: Callable[[], None],
        on_report: Callable[[], object],
        interval_seconds: float = REPORT_INTERVAL,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._fleet = fleet
        self._describe = describe
        self._node = describe()
        self._on_drain = on_drain
        self._on_report = on_report
        self._interval = interval_seconds
        self._wait = wait
        self._stopping = threading.Event()
        self._reachable = True
        self._thread = threading.Thread(target=self._loop, name="node-reporter", daemon=True)

    def start(self) -> None:
        """Begin to report."""
        # In a container a worker has the name and pid of the one before, and what was said of it.
        with contextlib.suppress(RedisError):
            self._fleet.leave(self._node.key)
        self._report()
        self._thread.start()

    def stop(self) -> None:
        """Stop and take the worker out of the fleet, so that nothing more is sent to it."""
        self._stopping.set()
        self._thread.join()
        try:
            self._fleet.leave(self._node.key)
        except RedisError as error:
            logger.warning("worker %s could not sign off: %s", self._node.name, error)

    def _loop(self) -> None:
        while not self._wait(self._stopping, self._interval):
            self._report()

    def _report(self) -> None:
        try:
            draining = self._node.draining
            if not draining and self._fleet.is_draining(self._node):
                self._begin_to_drain()
                draining = True
            self._look(draining=draining)
            self._fleet.report(self._node)
            self._fleet.forget_dead()
            self._on_report()
        except RedisError as error:
            if self._reachable:
                logger.warning("Redis is unreachable, slots are not reported: %s", error)
            self._reachable = False
        else:
            if not self._reachable:
                logger.info("Redis is reachable again")
            self._reachable = True

    def _look(self, *, draining: bool) -> None:
        node = self._describe()
        if draining:
            node = replace(node, slots=0, draining=True, held_up=DRAINING)
        if node.held_up != self._node.held_up:
            why = f": {node.held_up}" if node.held_up else ""
            logger.info("worker %s takes up to %d runs now%s", node.name, node.slots, why)
        self._node = node

    def _begin_to_drain(self) -> None:
        self._on_drain()
