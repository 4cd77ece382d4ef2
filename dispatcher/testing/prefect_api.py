"""A Prefect API in memory that behaves: for tests and benchmarks that need no server.

It takes and refuses states as Prefect 3.8 does, polls by priority and due time, applies limits and
pauses where the server does, and answers in the same shapes. The project's own tests run the same
cases against it and against a real server::

    fake = FakePrefect()
    client = fake.client()
    client.create_work_pool("my-pool", "process")

What a server does by itself in the background (late runs, offline workers, time-outs of a
cancellation, schedules) it does not do.
"""

from __future__ import annotations

import threading
import time
import urllib.parse
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from dispatcher.prefect_api import client, transport
from dispatcher.testing.fake_prefect import answers, faults, records, routing, serving
from dispatcher.testing.fake_prefect import store as stores

API_URL = "http://fake-prefect/api"

Fault = faults.Fault
FaultKind = faults.Kind


def _now() -> datetime:
    return datetime.now(UTC)


class FakePrefect:
    """An in-memory Prefect server; any number of threads may use it.

    ``clock`` tells the server's time. ``without_routes`` are routes that it does not know, as an
    older server: ``{"/flow_runs/bulk_set_state"}``. ``requests`` counts what was asked, by method
    and route; ``faults`` is a list that tests put faults into.
    """

    def __init__(
        self,
        *,
        clock: Callable[[], datetime] = _now,
        sleep: Callable[[float], None] = time.sleep,
        without_routes: Collection[str] = (),
    ) -> None:
        self.requests: Counter[tuple[str, str]] = Counter()
        self.faults: list[Fault] = []
        self._store = stores.Store(clock)
        self._sleep = sleep
        self._without_routes = frozenset(without_routes)
        self._lock = threading.Lock()

    def handle(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None = None,
        json: Any = None,
    ) -> answers.Answer:
        """Answer one request with a status and a JSON body.

        ``path`` is percent-encoded and counts from after ``/api``. Requests take effect one after
        the other, each as a whole.

        Raises:
            ConnectionBroken: a fault says that there is no answer.
        """
        try:
            match = routing.match(method, path, self._without_routes)
        except answers.Refusal as refusal:
            return refusal.answer
        names = {key: urllib.parse.unquote(value) for key, value in match.names.items()}
        request = answers.Request(self._store, names, params or {}, json)
        with self._lock:
            self.requests[method, match.route] += 1
            hit = [fault for fault in self.faults if fault.hits(method, match.route)]
        self._suffer(hit, before=True)
        for fault in hit:
            if fault.kind is FaultKind.REFUSED:
                return answers.Answer(fault.status, fault.body)
        with self._lock:
            answer = self._answered(match, request)
        self._suffer(hit, before=False)
        return answer

    def as_httpx_transport(self) -> serving.HttpxTransport:
        """The fake as the network layer of an httpx client."""
        return serving.HttpxTransport(self.handle)

    def transport(self, **options: Any) -> transport.Transport:
        """A transport that reaches the fake; ``options`` are those of the class."""
        return transport.Transport(API_URL, httpx_transport=self.as_httpx_transport(), **options)

    def client(self, **options: Any) -> client.PrefectClient:
        """A client of the fake; ``options`` are those of the transport."""
        return client.PrefectClient(self.transport(**options))

    def serve(self, host: str = "127.0.0.1", port: int = 0) -> AbstractContextManager[str]:
        """Serve the fake over HTTP while the context lasts, which gives the API URL."""
        return serving.serve(self.handle, host, port)

    def states(self, flow_run_id: UUID) -> list[records.State]:
        """A run's history, oldest first."""
        with self._lock:
            return list(self._store.flow_runs[flow_run_id].states)

    def logs(self, flow_run_id: UUID) -> list[records.Log]:
        """The lines of a run's log in the order in which they came."""
        with self._lock:
            return [log for log in self._store.logs if log.flow_run_id == flow_run_id]

    def events(self, name: str) -> list[records.Event]:
        """The events of one name in the order in which they came."""
        with self._lock:
            return [event for event in self._store.events if event.event == name]

    def _answered(self, match: routing.Match, request: answers.Request) -> answers.Answer:
        try:
            return match.handler(request)
        except answers.Refusal as refusal:
            return refusal.answer

    def _suffer(self, hit: list[Fault], *, before: bool) -> None:
        """Wait or break the connection, where a fault says so at this side of the request."""
        broken = FaultKind.REQUEST_LOST if before else FaultKind.REPLY_LOST
        for fault in hit:
            if before and fault.kind is FaultKind.DELAYED:
                self._sleep(fault.seconds)
            if fault.kind is broken:
                raise faults.ConnectionBroken(fault.kind.value)
