"""The events of Prefect's own workers, told by the dispatcher: who started, ran, cancelled what.

The whole fleet is one worker of each of its pools, by the name under which it sends heartbeats.
``started`` and ``stopped`` come from every Celery worker of the fleet, as they come from each of
several Prefect workers that were given one name; the label ``dispatcher.node``, which Prefect's
own do not have, tells them apart.
"""

from __future__ import annotations

import logging
import re
import threading
import unicodedata
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from importlib import metadata
from typing import Protocol
from uuid import UUID

from dispatcher import errors
from dispatcher.prefect_api import client, schemas
from dispatcher.reporting import outbox

INTERVAL_SECONDS = 5.0
# As in Prefect's client: an event is no longer said to follow one from longer ago, since a server
# holds it back until it has seen that one, which it forgets.
FOLLOWS_WITHIN = timedelta(minutes=5)
POOL_INTERVAL_SECONDS = 5.0

# Letters that Unicode does not take apart into one of ASCII and an accent; the last two are the
# dotless i and the typographic apostrophe.
_LETTERS = str.maketrans(
    {"ß": "ss", "æ": "ae", "œ": "oe", "ø": "o", "ł": "l", "đ": "d", "ð": "d", "þ": "th"}
    | {"ħ": "h", "\u0131": "i", "\u2019": None}
)

logger = logging.getLogger(__name__)

Related = list[dict[str, str]]


class Configuration(Protocol):
    """What an event needs of a run's job configuration."""

    def related_resources(self) -> Related:
        """Deployment, flow, flow run and tags."""


def new_outbox(api: client.PrefectClient) -> outbox.Outbox[schemas.Event]:
    """An outbox that emits the events put into it."""
    return outbox.Outbox(api.create_events, name="events", interval_seconds=INTERVAL_SECONDS)


class WorkerEvents:
    """Builds a worker's events and passes them to ``put``; a failure ends in the log only.

    ``prefect_version`` is that of the Prefect beside the dispatcher; without one the events say
    nothing about it.
    """

    def __init__(
        self,
        put: Callable[[schemas.Event], None],
        *,
        worker_name: str,
        prefect_version: str | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._put = put
        self._worker_name = worker_name
        self._prefect_version = prefect_version or _installed_prefect()
        self._now = now

    def started(self, pool: schemas.WorkPool, *, node: str) -> schemas.Event | None:
        """A Celery worker takes runs of the pool from now on; ``node`` is its name."""
        return self._emit("started", pool, list, node=node)

    def stopped(self, pool: schemas.WorkPool, *, node: str, started: schemas.Event | None) -> None:
        """A Celery worker takes no more runs of the pool; ``started`` is what it said at first."""
        self._emit("stopped", pool, list, node=node, follows=started)

    def submitted(self, pool: schemas.WorkPool, configuration: Configuration) -> Submission:
        """A run's job is about to be started; what comes of it is told through the result."""
        event = self._emit("submitted-flow-run", pool, configuration.related_resources)
        return Submission(self, pool, configuration, event)

    def executed(
        self,
        pool: schemas.WorkPool,
        configuration: Configuration,
        *,
        identifier: str,
        status_code: int,
        submitted: schemas.Event | None = None,
    ) -> None:
        """A run's job has ended; ``identifier`` is its infrastructure pid."""
        labels = {
            "prefect.infrastructure.identifier": identifier,
            "prefect.infrastructure.status-code": str(status_code),
        }
        self._emit(
            "executed-flow-run",
            pool,
            lambda: _with_labels(configuration.related_resources(), labels),
            follows=submitted,
        )

    def cancelled(
        self, pool: schemas.WorkPool, configuration: Configuration, *, identifier: str
    ) -> None:
        """A run's job was stopped because the run is to be cancelled."""
        labels = {"prefect.infrastructure.identifier": identifier}
        self._emit(
            "cancelled-flow-run",
            pool,
            lambda: _with_labels(configuration.related_resources(), labels),
        )

    def _emit(
        self,
        name: str,
        pool: schemas.WorkPool,
        related: Callable[[], Related],
        *,
        node: str | None = None,
        follows: schemas.Event | None = None,
    ) -> schemas.Event | None:
        try:
            occurred = self._now()
            event = schemas.Event(
                occurred=occurred,
                event=f"prefect.worker.{name}",
                resource=self._resource(pool, node),
                related=[*related(), _pool_resource(pool)],
                follows=_followed(follows, occurred),
            )
            self._put(event)
        except Exception:
            # A configuration may be anybody's, and no event is worth a run.
            logger.exception("the event %s could not be emitted", name)
            return None
        return event

    def _resource(self, pool: schemas.WorkPool, node: str | None) -> dict[str, str]:
        resource = {
            "prefect.resource.id": f"prefect.worker.{pool.type}.{slugify(self._worker_name)}",
            "prefect.resource.name": self._worker_name,
            "prefect.worker-type": pool.type,
        }
        labels = {"prefect.version": self._prefect_version, "dispatcher.node": node}
        return resource | {name: value for name, value in labels.items() if value}


@dataclass(frozen=True)
class Submission:
    """A run's job that was told of, for the events that follow."""

    _events: WorkerEvents
    _pool: schemas.WorkPool
    _configuration: Configuration
    _event: schemas.Event | None

    def executed(self, *, identifier: str, status_code: int) -> None:
        """The job has ended."""
        self._events.executed(
            self._pool,
            self._configuration,
            identifier=identifier,
            status_code=status_code,
            submitted=self._event,
        )

    def cancelled(self, *, identifier: str) -> None:
        """The job was stopped because the run is to be cancelled."""
        self._events.cancelled(self._pool, self._configuration, identifier=identifier)


class NodeEvents:
    """Tells when one Celery worker starts and stops to serve its pools, without delaying either.

    A pool that cannot be read yet, or does not exist yet, is asked for again until it can.
    """

    def __init__(
        self,
        events: WorkerEvents,
        read_pool: Callable[[str], schemas.WorkPool],
        pools: Collection[str],
        *,
        node: str,
        interval_seconds: float = POOL_INTERVAL_SECONDS,
    ) -> None:
        self._events = events
        self._read_pool = read_pool
        self._untold = tuple(pools)
        self._node = node
        self._interval_seconds = interval_seconds
        self._told: list[tuple[schemas.WorkPool, schemas.Event | None]] = []
        # So that no pool is told of the start after the end.
        self._lock = threading.Lock()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="node-events", daemon=True)

    def start(self) -> None:
        """Tell of the start, in the background."""
        self._thread.start()

    def stop(self) -> None:
        """Tell of the end, for those pools of which the start was told; may be called again."""
        with self._lock:
            self._stopping.set()
            told, self._told = self._told, []
        for pool, started in told:
            self._events.stopped(pool, node=self._node, started=started)

    def _loop(self) -> None:
        while self._untold and not self._stopping.is_set():
            self._untold = tuple(name for name in self._untold if not self._tell(name))
            self._stopping.wait(self._interval_seconds)

    def _tell(self, name: str) -> bool:
        try:
            pool = self._read_pool(name)
        except errors.ApiError:
            return False
        with self._lock:
            if not self._stopping.is_set():
                self._told.append((pool, self._events.started(pool, node=self._node)))
        return True


def slugify(name: str) -> str:
    """A worker's name as it stands in resource ids, which automations match on.

    The same as Prefect's for names in Latin letters. Prefect romanises other scripts; here their
    letters become code points, so that different names stay different.
    """
    folded = unicodedata.normalize("NFKD", name.lower().translate(_LETTERS))
    ascii_only = "".join(map(_as_ascii, folded))
    joined = re.sub(r"(?<=\d),(?=\d)", "", ascii_only)
    return re.sub(r"[^a-z0-9]+", "-", joined).strip("-")


def _as_ascii(letter: str) -> str:
    if letter.isascii():
        return letter
    if letter.isalnum():
        return f"u{ord(letter):x}"
    # Signs and accents vanish, punctuation and blanks divide.
    return "-" if unicodedata.category(letter)[0] in "PZ" else ""


def _with_labels(related: Related, labels: dict[str, str]) -> Related:
    return [
        {**resource, **labels} if resource["prefect.resource.role"] == "flow-run" else resource
        for resource in related
    ]


def _pool_resource(pool: schemas.WorkPool) -> dict[str, str]:
    return {
        "prefect.resource.id": f"prefect.work-pool.{pool.id}",
        "prefect.resource.role": "work-pool",
        "prefect.resource.name": pool.name,
    }


def _followed(event: schemas.Event | None, occurred: datetime) -> UUID | None:
    if event is None or abs(occurred - event.occurred) >= FOLLOWS_WITHIN:
        return None
    return event.id


def _installed_prefect() -> str | None:
    try:
        return metadata.version("prefect")
    except metadata.PackageNotFoundError:
        return None
