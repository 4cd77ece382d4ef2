"""The few routes of Prefect's API that the dispatcher needs for a run, answered very cheaply.

It stands in for a server where the dispatcher itself is to be measured and not Prefect. The
bodies are those of ``dispatcher.testing``, made once; an answer is such a body with the run's ids
put in. Whoever claims a run gets it, and nothing ever happens to a run by itself: it checks
nothing and forgets nothing.

Routes of its own: ``POST /api/stub/runs`` with a number makes runs due, and a GET there tells how
many are; ``GET /api/stub/requests`` counts what was asked, a DELETE there starts the counts anew.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import re
import time
import uuid
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

from benchmarks import noop_executor, stub_events
from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_api, prefect_objects

POOL = "benchmark"
PREFIX = "/api"
UNKNOWN = "unknown: "

_ID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_HEAD_END = b"\r\n\r\n"
_LENGTH = b"content-length:"
_REASONS = {200: "OK", 201: "Created", 204: "No Content", 404: "Not Found"}

Answer = tuple[int, str]
Handler = Callable[[str, Any], Answer]

_NOTHING: Answer = (204, "")


class Bodies:
    """Answers of a Prefect server, as texts in which a run's ids are to be replaced."""

    def __init__(self) -> None:
        self._fake = prefect_api.FakePrefect()
        objects = prefect_objects.PrefectObjects(self._fake.client())
        template = noop_executor.NoopExecutor.get_default_base_job_template()
        objects.pool(POOL, type=noop_executor.TYPE, base_job_template=template)
        deployment = objects.deployment(POOL, path="/", entrypoint="flows.py:empty")
        run = objects.run(deployment)
        self._run_id, self._transition_id = str(run.id), str(uuid.uuid4())
        self.pool = self._get(f"/work_pools/{POOL}")
        self.deployment = self._get(f"/deployments/{deployment.id}")
        self.flow = self._get(f"/flows/{run.flow_id}")
        self.queues = json.dumps(self._ask("POST", f"/work_pools/{POOL}/queues/filter", {}))
        poll = f"/work_pools/{POOL}/get_scheduled_flow_runs"
        self._due = json.dumps(self._ask("POST", poll, {"limit": 1})[0])
        self._verdict = json.dumps(self._propose())
        self._claimed = self._get(f"/flow_runs/{run.id}")

    def due(self, run_id: str) -> str:
        """A row of a poll."""
        return self._due.replace(self._run_id, run_id)

    def verdict(self, run_id: str, transition_id: str) -> str:
        """A row of the answer to a bulk proposal of Pending, or the answer to a single one."""
        return self._filled(self._verdict, run_id, transition_id)

    def claimed(self, run_id: str, transition_id: str) -> str:
        """A run that is Pending."""
        return self._filled(self._claimed, run_id, transition_id)

    def _filled(self, text: str, run_id: str, transition_id: str) -> str:
        return text.replace(self._run_id, run_id).replace(self._transition_id, transition_id)

    def _propose(self) -> Any:
        state = {"type": "PENDING", "state_details": {"transition_id": self._transition_id}}
        body = {"flow_runs": {"id": {"any_": [self._run_id]}}, "state": state}
        return self._ask("POST", "/flow_runs/bulk_set_state", body)["results"][0]

    def _get(self, path: str) -> str:
        return json.dumps(self._ask("GET", path, None))

    def _ask(self, method: str, path: str, body: Any) -> Any:
        return self._fake.handle(method, path, {}, body).body


class Stub:
    """The runs, and the handlers of the routes."""

    def __init__(self, bodies: Bodies, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._bodies = bodies
        self._monotonic = monotonic
        self._due: dict[str, None] = {}
        self._transitions: dict[str, str] = {}
        self._requests: Counter[str] = Counter()
        pool, run = f"/work_pools/{POOL}", "/flow_runs/{id}"
        self._routes: dict[tuple[str, str], Handler] = {
            ("GET", "/health"): lambda *_: (200, "true"),
            ("GET", pool): lambda *_: (200, bodies.pool),
            ("POST", "/work_pools/filter"): lambda *_: (200, f"[{bodies.pool}]"),
            ("GET", "/admin/version"): lambda *_: (200, '"3.9.1"'),
            ("GET", "/deployments/{id}"): lambda *_: (200, bodies.deployment),
            ("GET", "/flows/{id}"): lambda *_: (200, bodies.flow),
            ("POST", f"{pool}/get_scheduled_flow_runs"): self._poll,
            ("POST", f"{pool}/workers/heartbeat"): lambda *_: _NOTHING,
            ("POST", "/flow_runs/bulk_set_state"): self._claim_all,
            ("POST", f"{pool}/queues/filter"): lambda *_: (200, bodies.queues),
            ("POST", "/flow_runs/filter"): self._filter,
            ("GET", "/flow_run_states/"): lambda *_: (200, "[]"),
            ("GET", run): self._read,
            ("PATCH", run): lambda *_: _NOTHING,
            ("PATCH", f"{run}/labels"): lambda *_: _NOTHING,
            ("POST", f"{run}/set_state"): self._claim,
            ("POST", "/logs/"): lambda *_: (201, ""),
            ("POST", "/events"): lambda *_: _NOTHING,
            ("POST", "/stub/runs"): self._add,
            ("GET", "/stub/runs"): lambda *_: (200, str(len(self._due))),
            ("GET", "/stub/requests"): lambda *_: (200, json.dumps(self._requests)),
            ("DELETE", "/stub/requests"): self._forget,
        }

    def answer(self, method: str, path: str, content: bytes) -> Answer:
        """The answer to one request."""
        run_id, shape = _shape(path)
        handler = self._routes.get((method, shape))
        own = shape.startswith("/stub/")
        if not own:
            self._requests[f"{'' if handler else UNKNOWN}{method} {shape}"] += 1
        if handler is None:
            return 404, '{"detail":"Not Found"}'
        return handler(run_id, json.loads(content) if content else None)

    def _add(self, _: str, count: int) -> Answer:
        self._due.update((str(uuid.uuid4()), None) for _ in range(count))
        return 201, "null"

    def _forget(self, *_: Any) -> Answer:
        self._requests.clear()
        return _NOTHING

    def _poll(self, _: str, body: Any) -> Answer:
        rows: list[str] = []
        for run_id in self._due:
            if len(rows) >= body.get("limit", 200):
                break
            rows.append(self._bodies.due(run_id))
        return 200, _list(rows)

    def _claim_all(self, _: str, body: Any) -> Answer:
        chosen = [run_id for run_id in body["flow_runs"]["id"]["any_"] if run_id in self._due]
        transition_id = body["state"]["state_details"]["transition_id"]
        rows = [self._granted(run_id, transition_id) for run_id in chosen]
        return 200, f'{{"results":{_list(rows)}}}'

    def _claim(self, run_id: str, body: Any) -> Answer:
        if body["state"]["type"] != schemas.StateType.PENDING:
            return 404, '{"detail":"the stub only takes Pending"}'
        return 201, self._granted(run_id, body["state"]["state_details"]["transition_id"])

    def _granted(self, run_id: str, transition_id: str) -> str:
        self._due.pop(run_id, None)
        self._transitions[run_id] = transition_id
        return self._bodies.verdict(run_id, transition_id)

    def _read(self, run_id: str, _: Any) -> Answer:
        return 200, self._bodies.claimed(run_id, self._transitions[run_id])

    def _filter(self, _: str, body: Any) -> Answer:
        # By state nothing is found: the runs that are claimed are the dispatcher's, and no orphans.
        wanted = body.get("flow_runs", {}).get("id", {}).get("any_", [])
        known = [run_id for run_id in wanted if run_id in self._transitions]
        return 200, _list(self._bodies.claimed(each, self._transitions[each]) for each in known)


class Connection(asyncio.Protocol):
    """One connection of HTTP/1.1, kept alive; no chunks, no compression, no TLS."""

    def __init__(self, stub: Stub) -> None:
        self._stub = stub
        self._received = b""
        self._events: stub_events.EventSocket | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        if self._events is not None:
            self._events.receive(data)
            return
        self._received += data
        while (end := self._received.find(_HEAD_END)) >= 0:
            head = self._received[:end]
            start, length = end + len(_HEAD_END), _content_length(head)
            if len(self._received) < start + length:
                return
            content = self._received[start : start + length]
            self._received = self._received[start + length :]
            method, target, _ = head.split(b" ", 2)
            path = target.partition(b"?")[0].decode().removeprefix(PREFIX)
            if path == stub_events.PATH:
                self._events = stub_events.EventSocket(self._transport)
                self._transport.write(stub_events.handshake(head))
                return
            self._transport.write(_message(*self._stub.answer(method.decode(), path, content)))


def _shape(path: str) -> tuple[str, str]:
    """The first id of a path, and the path without its ids."""
    found = _ID.search(path)
    return (found.group(), _ID.sub("{id}", path)) if found else ("", path)


def _content_length(head: bytes) -> int:
    _, found, rest = head.lower().partition(_LENGTH)
    return int(rest.partition(b"\r\n")[0]) if found else 0


def _message(status: int, body: str) -> bytes:
    content = body.encode()
    head = f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\n"
    if status != 204:
        head += f"Content-Length: {len(content)}\r\n"
    return head.encode() + b"\r\n" + content


def _list(rows: Iterable[str]) -> str:
    return f"[{','.join(rows)}]"


async def serve(port: int) -> None:
    """Serve on the loopback interface until cancelled."""
    stub = Stub(Bodies())
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(stub), "127.0.0.1", port)
    async with server:
        await server.serve_forever()


def main() -> None:
    """Serve on the port that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    asyncio.run(serve(parser.parse_args().port))


if __name__ == "__main__":
    main()
