"""Prefect tells of work itself: a run that became due, a run to be cancelled.

What is told only hastens what the ticks find out anyway, so nothing is lost with a server that
tells nothing, or while the connection is down. One process of a fleet listens, the others stand
by. Runs that became due are heard of by pool. Cancels are heard of by run, since a user may have
deleted or changed the pool of one that the fleet holds.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Protocol
from uuid import UUID

from redis import RedisError

from dispatcher import error_boundary, errors
from dispatcher.ledger import claims, locks
from dispatcher.prefect_api import schemas

DUE_LOCK = "subscription"
CANCELS_LOCK = "subscription:cancels"
LEASE_SECONDS = 15.0
RENEW_SECONDS = 3.0
STANDBY_SECONDS = 5.0
# Between two messages to the fleet about one pool. A burst of events is one message at once and
# one at the end of this.
INTERVAL_SECONDS = 0.5
# A connection is made anew after that, since a work pool that was made anew has another id.
RECONNECT_SECONDS = 600.0
FIRST_PAUSE_SECONDS = 1.0
LONGEST_PAUSE_SECONDS = 30.0
REFUSED_PAUSE_SECONDS = 300.0

CANCELLING = "prefect.flow-run.Cancelling"
RESOURCE_ID = "prefect.resource.id"
RUN_PREFIX = "prefect.flow-run."
# The states from which a run can be claimed, but for those that it enters because it could not.
DUE = (
    "prefect.flow-run.Scheduled",
    "prefect.flow-run.Late",
    "prefect.flow-run.AwaitingRetry",
    "prefect.flow-run.Resuming",
)

logger = logging.getLogger(__name__)

# The work pools that the fleet serves now.
Pools = Callable[[], Sequence[str]]


class Stream(Protocol):
    """What is needed of a stream of events."""

    def receive(self, timeout_seconds: float) -> schemas.Event | None:
        """The next event; ``None`` if there is none in time."""


class OpenStream(Protocol):
    """Subscribes to events of these names about any of the resources, or about all."""

    def __call__(
        self, *, names: Sequence[str], resource_ids: Sequence[str]
    ) -> AbstractContextManager[Stream]:
        """Raises :class:`dispatcher.errors.ApiError`, as the stream does."""


class Topic(Protocol):
    """What is listened to, and which pool has to be looked after because of an event."""

    @property
    def lock(self) -> str:
        """The lock of whoever listens to it, of a whole fleet."""

    @property
    def names(self) -> Sequence[str]:
        """The names of the events."""

    def resources(self) -> Sequence[str]:
        """The ids of the resources that events have to be about, as of now; all if it is empty."""

    def is_outdated(self) -> bool:
        """Whether there is a resource by now that was missing when they were asked for.

        Raises:
            errors.ApiError: the API could not be asked.
        """

    def pool_of(self, event: schemas.Event) -> str | None:
        """The pool to look after; ``None`` if the event is nobody's business here."""


class DueRuns:
    """Runs of the pools that can be claimed."""

    lock = DUE_LOCK
    names = DUE

    def __init__(self, pools: Pools, read_pool: Callable[[str], schemas.WorkPool]) -> None:
        self._pools = pools
        self._read_pool = read_pool
        self._by_resource: dict[str, str] = {}
        self._missing: list[str] = []

    def resources(self) -> Sequence[str]:
        """The pools that exist; raises :class:`dispatcher.errors.ApiError` if there are none."""
        self._by_resource, self._missing = {}, []
        absence: errors.ObjectNotFound | None = None
        for name in self._pools():
            try:
                self._by_resource[f"prefect.work-pool.{self._read_pool(name).id}"] = name
            except errors.ObjectNotFound as error:
                # One worker's pool that was deleted must not keep the others' from being heard.
                self._missing.append(name)
                absence = error
        if absence is not None and not self._by_resource:
            # No ids at all would ask for the events of every pool of the server.
            raise absence
        return tuple(self._by_resource)

    def is_outdated(self) -> bool:
        """Whether a pool is there by now that was missing."""
        return any(self._exists(name) for name in self._missing)

    def _exists(self, name: str) -> bool:
        try:
            self._read_pool(name)
        except errors.ObjectNotFound:
            return False
        return True

    def pool_of(self, event: schemas.Event) -> str | None:
        """The pool that the run is due in."""
        found = (self._by_resource.get(each.get(RESOURCE_ID, "")) for each in event.related)
        return next((pool for pool in found if pool is not None), None)


class Cancels:
    """Runs that are to be cancelled and are in one of the pools, or were held by the fleet."""

    lock = CANCELS_LOCK
    names = (CANCELLING,)

    def __init__(self, pools: Pools, find_claim: Callable[[UUID], claims.Claim | None]) -> None:
        self._pools = pools
        self._find_claim = find_claim

    def resources(self) -> Sequence[str]:
        """Any: that the fleet holds a run is known by its id alone."""
        return ()

    def is_outdated(self) -> bool:
        """Never: nothing can be missing."""
        return False

    def pool_of(self, event: schemas.Event) -> str | None:
        """The run's pool, or any, since one look for cancels serves all.

        Raises:
            redis.RedisError: the ledger is away.
        """
        named = {each.get("prefect.resource.name") for each in event.related if _is_pool(each)}
        pools = self._pools()
        for pool in pools:
            if pool in named:
                return pool
        return pools[0] if self._was_held(event.resource.get(RESOURCE_ID, "")) else None

    def _was_held(self, resource_id: str) -> bool:
        try:
            run_id = UUID(resource_id.removeprefix(RUN_PREFIX))
        except ValueError:
            return False
        return self._find_claim(run_id) is not None


def _is_pool(resource: Mapping[str, str]) -> bool:
    return resource.get(RESOURCE_ID, "").startswith("prefect.work-pool.")


class Subscription:
    """Listens to one topic in a thread of its own, and tells the pool that is concerned.

    ``tell`` gets the name of a pool, also once for each pool whenever a connection was made, for
    what happened meanwhile.
    """

    def __init__(
        self,
        topic: Topic,
        *,
        open_stream: OpenStream,
        pools: Pools,
        mutex: locks.Locks,
        tell: Callable[[str], None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._topic = topic
        self._open_stream = open_stream
        self._locks = mutex
        self._tell = tell
        self._pools = pools
        self._bells: dict[str, _Bell] = {}
        self._monotonic = monotonic
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._is_told = False
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to listen, in the background."""
        self._stopping.clear()
        self._thread = threading.Thread(target=self._loop, name="subscription", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop listening; returns at once, and may be called again."""
        self._stopping.set()

    def _loop(self) -> None:
        while not self._stopping.is_set():
            try:
                with self._locks.lease(self._topic.lock, lease_seconds=LEASE_SECONDS) as renew:
                    if renew is not None:
                        self._serve(_Lease(renew, self._monotonic))
            except RedisError as error:
                logger.debug("nobody knows who listens to Prefect's events: %s", error)
            except Exception:
                # The ticks go on without it, and so must the next attempt.
                logger.exception("listening to Prefect's events failed")
            self._stopping.wait(STANDBY_SECONDS)

    def _serve(self, lease: _Lease) -> None:
        while lease.is_held() and not self._stopping.is_set():
            try:
                self._listen(lease)
            except errors.ApiError as error:
                self._note_failure(error)
                self._wait(lease)

    def _listen(self, lease: _Lease) -> None:
        resources = self._topic.resources()
        age = _Age(self._topic.is_outdated, self._monotonic)
        with self._open_stream(names=self._topic.names, resource_ids=resources) as stream:
            self._note_success()
            for pool in self._pools():
                self._bell(pool).ask()
            while lease.is_held() and not self._stopping.is_set() and not age.is_over():
                for bell in self._bells.values():
                    bell.ring_if_due()
                event = stream.receive(self._patience())
                concerned = self._topic.pool_of(event) if event is not None else None
                if concerned is not None:
                    self._bell(concerned).ask()

    def _bell(self, pool: str) -> _Bell:
        return self._bells.setdefault(pool, _Bell(self._tell, pool, self._monotonic))

    def _patience(self) -> float:
        return min([RENEW_SECONDS, *(bell.due_in() for bell in self._bells.values())])

    def _wait(self, lease: _Lease) -> None:
        until = self._monotonic() + self._pause_seconds
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        while self._monotonic() < until and lease.is_held():
            if self._stopping.wait(min(RENEW_SECONDS, until - self._monotonic())):
                return

    def _note_success(self) -> None:
        logger.info("Prefect's events are heard (%s): nothing waits for a tick", self._topic.lock)
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._is_told = False

    def _note_failure(self, error: errors.ApiError) -> None:
        if isinstance(error, errors.EventsRefused):
            self._pause_seconds = REFUSED_PAUSE_SECONDS
        # A pool that is not there yet is the sync task's matter.
        if not self._is_told and not isinstance(error, errors.ObjectNotFound):
            logger.warning("%s Until then runs start and stop at the ticks.", _sentence(error))
            self._is_told = True


class _Lease:
    """The right to listen, renewed where it is asked about often."""

    def __init__(self, renew: Callable[[], bool], monotonic: Callable[[], float]) -> None:
        self._renew = renew
        self._monotonic = monotonic
        self._renewed_at = monotonic()

    def is_held(self) -> bool:
        now = self._monotonic()
        if now - self._renewed_at < RENEW_SECONDS:
            return True
        self._renewed_at = now
        return self._renew()


class _Age:
    """When a connection is to be made anew: after a time, or when what was missing is there."""

    def __init__(self, is_outdated: Callable[[], bool], monotonic: Callable[[], float]) -> None:
        self._is_outdated = is_outdated
        self._monotonic = monotonic
        self._ends_at = monotonic() + RECONNECT_SECONDS
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._look_at = monotonic() + FIRST_PAUSE_SECONDS

    def is_over(self) -> bool:
        now = self._monotonic()
        if now >= self._ends_at:
            return True
        if now < self._look_at:
            return False
        self._pause_seconds = min(2 * self._pause_seconds, LONGEST_PAUSE_SECONDS)
        self._look_at = now + self._pause_seconds
        return self._is_outdated()


class _Bell:
    """Rings at once when asked, but only once in an interval; the last one asked for is rung."""

    def __init__(
        self, ring: Callable[[str], None], pool: str, monotonic: Callable[[], float]
    ) -> None:
        self._ring = ring
        self._pool = pool
        self._monotonic = monotonic
        self._asked = False
        self._rung_at = float("-inf")

    def ask(self) -> None:
        self._asked = True

    def due_in(self) -> float:
        if not self._asked:
            return float("inf")
        return max(self._rung_at + INTERVAL_SECONDS - self._monotonic(), 0.0)

    def ring_if_due(self) -> None:
        if self.due_in() > 0.0:
            return
        self._asked = False
        self._rung_at = self._monotonic()
        try:
            self._ring(self._pool)
        except error_boundary.EXPECTED as error:
            logger.debug("nobody could be told of an event in %s: %s", self._pool, error)


def _sentence(error: Exception) -> str:
    return str(error).rstrip(".") + "."
