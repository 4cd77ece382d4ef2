"""Whether a worker is well: over HTTP for probes, and for ``dispatcher health``.

Nothing here waits for Redis, Celery or Prefect while somebody asks: a thread looks at Redis all
the time, and what is answered is what it saw last.
"""

from __future__ import annotations

import http.server
import json
import logging
import os
import socket
import socketserver
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from redis import Redis, RedisError

from dispatcher import errors
from dispatcher.ledger import beat_reports, fleet, keys, last_polls, redis_connection

# Prefect's measure of a worker that no longer polls and should be restarted.
MISSED_POLLS = 30
LOOK_INTERVAL = 2.0  # seconds
# A look that hangs is not ended from here, so what it last saw counts no longer than this.
SIGHT_LIFETIME = 10.0  # seconds
# How long a client may take to send its request.
CLIENT_TIMEOUT = 5.0  # seconds

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What a health check says; ``message`` tells what is wrong unless ``ok``."""

    ok: bool
    message: str


class WorkerHealth:
    """The health of one Celery worker, seen from a thread of its own.

    ``poll_interval_seconds`` is the interval at which beat has ``pools`` polled; ``node_key`` is
    the worker's own :attr:`dispatcher.ledger.fleet.Node.key`.
    """

    def __init__(
        self,
        *,
        record: last_polls.LastPolls,
        workers: fleet.Fleet,
        node_key: str,
        pools: Sequence[str],
        poll_interval_seconds: float,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[threading.Event, float], bool] = threading.Event.wait,
    ) -> None:
        self._polls = record
        self._fleet = workers
        self._node_key = node_key
        self._limit = poll_interval_seconds * MISSED_POLLS
        self._monotonic = monotonic
        self._wait = wait
        # Until the first poll is seen, the start of the worker counts, as in Prefect's worker.
        self._polled = dict.fromkeys(pools, monotonic())
        self._seen_at: float | None = None
        self._reported = False
        self._retired = False
        self._was_polling = True
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="health", daemon=True)

    def start(self) -> None:
        """Begin to look."""
        self._thread.start()

    def stop(self) -> None:
        """Look no more."""
        self._stopping.set()
        if self._thread.is_alive():
            self._thread.join()

    def retire(self) -> None:
        """Note that the worker shuts down: it is well, however long its runs take, but not ready.

        Polls may stop with it, and a probe that took this for a fault would end the runs.
        """
        self._retired = True

    def look(self) -> None:
        """Look once, now."""
        try:
            ages = self._polls.ages(list(self._polled))
            reported = any(node.key == self._node_key for node in self._fleet.nodes())
        except RedisError:
            self._seen_at = None
        else:
            now = self._monotonic()
            self._polled |= {pool: max(self._polled[pool], now - age) for pool, age in ages.items()}
            self._reported = reported
            self._seen_at = now
        self._log_change()

    def is_worker_still_polling(self) -> bool:
        """Whether every pool was polled within the last 30 poll intervals, by any worker."""
        return not self._overdue()

    def health(self) -> Answer:
        """Whether the worker should live on, or be restarted."""
        overdue = self._overdue()
        if self._retired or not overdue:
            return Answer(True, "OK")
        causes = [describe_overdue(overdue, self._limit)]
        if not self._sees_redis():
            causes.append("Redis does not answer")
        return Answer(False, "; ".join(causes))

    def ready(self) -> Answer:
        """Whether the worker takes new runs."""
        if self._retired:
            return Answer(False, "The worker is shutting down")
        if not self._sees_redis():
            return Answer(False, "Redis does not answer")
        if not self._reported:
            return Answer(False, "The worker has not reported its slots")
        return Answer(True, "OK")

    def _overdue(self) -> dict[str, float]:
        """Seconds since the last poll, of the pools for which these are too many."""
        now = self._monotonic()
        ages = {pool: now - polled for pool, polled in self._polled.items()}
        return {pool: age for pool, age in ages.items() if age > self._limit}

    def _sees_redis(self) -> bool:
        seen_at = self._seen_at
        return seen_at is not None and self._monotonic() - seen_at <= SIGHT_LIFETIME

    def _log_change(self) -> None:
        polling = self.is_worker_still_polling()
        if polling and not self._was_polling:
            logger.info("every work pool is polled again")
        if not polling and self._was_polling:
            text = describe_overdue(self._overdue(), self._limit)
            logger.error("%s; restart the workers of the control queue if this lasts", text)
        self._was_polling = polling

    def _loop(self) -> None:
        self.look()
        while not self._wait(self._stopping, LOOK_INTERVAL):
            self.look()


def describe_overdue(ages: Mapping[str, float], limit_seconds: float) -> str:
    """Say which pools were not polled for how long."""
    pools = ", ".join(f"{pool!r} for {age:.0f} s" for pool, age in sorted(ages.items()))
    return f"Not polled (limit {limit_seconds:.0f} s): work pool {pools}"


class HealthServer:
    """Answers ``GET /health`` and ``GET /ready`` with 200 or 503 and ``{"message": ...}``.

    Listens once it is built, so that a port that is taken is known before the worker starts; a
    request that comes before :meth:`start` waits for it.

    Raises:
        SettingsError: the address cannot be listened on.
    """

    def __init__(self, health: WorkerHealth, *, host: str, port: int) -> None:
        self._health = health
        handler = _handler({"/health": health.health, "/ready": health.ready})
        try:
            self._server = _server(host, port, handler)
        except (OSError, OverflowError) as error:
            raise errors.SettingsError(
                f"Health checks cannot listen on {host} port {port} ({error}); set "
                "DISPATCHER_HEALTH_HOST and DISPATCHER_HEALTH_PORT, to another port for each "
                "worker of one host"
            ) from None
        _listening.add(self._server.socket)
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="health-server", daemon=True
        )

    @property
    def port(self) -> int:
        """The port that is listened on, also where 0 was asked for."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._health.start()
        self._thread.start()

    def stop(self) -> None:
        """Answer no more and give the port back."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._health.stop()


# A forked child (Celery's pool, a warm run) would keep the port of a worker that is gone.
_listening: weakref.WeakSet[socket.socket] = weakref.WeakSet()


def _close_all(sockets: Iterable[socket.socket]) -> None:
    for each in list(sockets):
        each.close()


os.register_at_fork(after_in_child=lambda: _close_all(_listening))


class _Server(http.server.ThreadingHTTPServer):
    def server_bind(self) -> None:
        # HTTPServer looks its own name up, which can hang where DNS does.
        socketserver.TCPServer.server_bind(self)

    def handle_error(self, _request: object, _client_address: object) -> None:
        logger.debug("a health check was not answered", exc_info=True)


class _ServerV6(_Server):
    address_family = socket.AF_INET6


def _server(host: str, port: int, handler: type[http.server.BaseHTTPRequestHandler]) -> _Server:
    kind = _ServerV6 if ":" in host else _Server
    return kind((host, port), handler)


def _handler(
    answers: Mapping[str, Callable[[], Answer]],
) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        timeout = CLIENT_TIMEOUT

        def do_GET(self) -> None:
            answer = answers.get(self.path.partition("?")[0])
            if answer is None:
                self._send(404, "Not found; there are /health and /ready")
            else:
                found = answer()
                self._send(200 if found.ok else 503, found.message)

        def _send(self, status: int, message: str) -> None:
            body = json.dumps({"message": message}).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            return "dispatcher"

        def log_message(self, *arguments: object) -> None:
            """Keep the probes of every few seconds out of the worker's log."""

    return Handler


def connect(url: str, prefix: str, timeout_seconds: float) -> Redis:
    """Make a Redis client that tries everything once."""
    return redis_connection.connect_once(url, prefix=prefix, timeout_seconds=timeout_seconds)


def check_worker(
    redis: Redis, *, host: str, node: str | None = None, prefix: str = keys.PREFIX
) -> Answer:
    """Whether a worker of a host, or the one of a node name, reported its slots just now.

    Raises:
        RedisError: Redis does not answer.
    """
    alive = [each.name for each in fleet.Fleet(redis, prefix=prefix).nodes()]
    if node is not None:
        found, wanted = [each for each in alive if each == node], f"worker {node}"
    else:
        found = [each for each in alive if each.rpartition("@")[2] == host]
        wanted = f"worker of host {host}"
    if found:
        return Answer(True, f"OK: {', '.join(found)}")
    return Answer(False, f"No {wanted} has reported within {fleet.REPORT_LIFETIME:.0f} s")


def check_beat(redis: Redis, *, host: str, prefix: str = keys.PREFIX) -> Answer:
    """Whether beat of a host has sent a tick of late.

    Raises:
        RedisError: Redis does not answer.
    """
    if beat_reports.BeatReports(redis, prefix=prefix).is_alive(host):
        return Answer(True, f"OK: beat of host {host}")
    return Answer(False, f"No beat of host {host} has sent a tick of late")


def within(seconds: float, check: Callable[[], Answer]) -> Answer:
    """Carry a check out, but wait for it no longer than ``seconds``.

    In a thread that is left behind if need be: looking up a host name has no timeout of its own.
    """
    answers: list[Answer] = []

    def carry_out() -> None:
        try:
            answers.append(check())
        except RedisError as error:
            answers.append(Answer(False, f"Redis does not answer: {error}"))

    thread = threading.Thread(target=carry_out, name="health-check", daemon=True)
    thread.start()
    thread.join(seconds)
    return answers[0] if answers else Answer(False, f"Redis did not answer within {seconds:g} s")
