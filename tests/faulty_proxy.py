"""A reverse proxy before a Prefect server that counts requests and fails some of them."""

from __future__ import annotations

import http.client
import random
import socket
import threading
import urllib.parse
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

TIMEOUT_SECONDS = 60.0
# These belong to one connection, and there are two.
_NOT_PASSED_ON = {"connection", "keep-alive", "transfer-encoding", "content-length", "host"}


class Fault(StrEnum):
    """What happens to a request instead of an answer."""

    REFUSE = "refuse"  # 503; the server never sees it
    DROP_REPLY = "drop-reply"  # the server carries it out, the answer is lost


@dataclass(frozen=True)
class Request:
    """A request that the proxy received."""

    method: str
    path: str
    user_agent: str


Decide = Callable[[Request], Fault | None]


def no_faults(request: Request) -> Fault | None:
    """Pass everything on."""
    return None


def refuse_share(share: float, seed: int) -> Decide:
    """Refuse that share of the requests, at random but the same ones for the same seed."""
    dice = random.Random(seed)
    return lambda request: Fault.REFUSE if dice.random() < share else None


def drop_first_reply(path_end: str) -> Decide:
    """Lose the answer to the first request whose path ends so."""
    left = [Fault.DROP_REPLY]
    return lambda request: left.pop() if left and request.path.endswith(path_end) else None


class FaultyProxy:
    """Passes requests on to the API at ``api_url``, but for those for which ``decide`` has a fault.

    ``decide`` may be replaced at any time; it is called for one request after the other.
    """

    def __init__(self, api_url: str) -> None:
        self.decide: Decide = no_faults
        self._target = urllib.parse.urlsplit(api_url)
        self._lock = threading.Lock()
        self._seen: list[tuple[Request, Fault | None]] = []
        self._turned_away: list[Request] = []
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))

    @property
    def api_url(self) -> str:
        """The API's address through the proxy."""
        return f"http://127.0.0.1:{self._server.server_port}{self._target.path}"

    @property
    def requests(self) -> list[Request]:
        """What was received until now, failed requests too."""
        with self._lock:
            return [request for request, _ in self._seen]

    @property
    def turned_away(self) -> list[Request]:
        """What the server itself was too busy for (503), so that it was sent again."""
        with self._lock:
            return list(self._turned_away)

    @property
    def faults(self) -> list[Fault]:
        """What was done wrong until now."""
        with self._lock:
            return [fault for _, fault in self._seen if fault is not None]

    def count(self, path_end: str) -> int:
        """How many requests to such a path were received."""
        return sum(request.path.endswith(path_end) for request in self.requests)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def note(self, request: Request) -> Fault | None:
        """Remember a request and say what is to happen to it."""
        with self._lock:
            fault = self.decide(request)
            self._seen.append((request, fault))
            return fault

    def ask_server(
        self, request: Request, headers: dict[str, str], body: bytes
    ) -> tuple[int, list[tuple[str, str]], bytes]:
        """Pass a request on and return status, headers and body of the answer."""
        connection = http.client.HTTPConnection(self._target.netloc, timeout=TIMEOUT_SECONDS)
        try:
            connection.request(request.method, request.path, body=body, headers=headers)
            answer = connection.getresponse()
            if answer.status == http.HTTPStatus.SERVICE_UNAVAILABLE:
                with self._lock:
                    self._turned_away.append(request)
            return answer.status, _passed_on(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        proxy = self

        class Handler(_Handler):
            def __init__(self, *arguments: Any) -> None:
                self.proxy = proxy
                super().__init__(*arguments)

        return Handler


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that were killed leave broken connections."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = TIMEOUT_SECONDS
    proxy: FaultyProxy

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        request = Request(self.command, self.path, self.headers.get("User-Agent", ""))
        fault = self.proxy.note(request)
        if fault is Fault.REFUSE:
            self._answer(503, [("Content-Type", "application/json")], b'{"detail": "refused"}')
            return
        answer = self.proxy.ask_server(request, dict(_passed_on(self.headers.items())), body)
        if fault is Fault.DROP_REPLY:
            self.close_connection = True
            self.connection.shutdown(socket.SHUT_RDWR)
            return
        self._answer(*answer)

    do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = _serve  # noqa: N815 (http.server's names)

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            self.send_header(name, value)
        if status != http.HTTPStatus.NO_CONTENT:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: Any) -> None:
        """Keep quiet."""


def _passed_on(headers: Any) -> list[tuple[str, str]]:
    return [(name, value) for name, value in headers if name.lower() not in _NOT_PASSED_ON]
