"""Ways to reach the fake Prefect API: inside the process, or over HTTP."""

from __future__ import annotations

import contextlib
import json
import threading
import urllib.parse
from collections.abc import Callable, Iterator, Mapping
from http import server as http_server
from typing import Any

import httpx

from dispatcher.testing.fake_prefect import answers, faults

API_PREFIX = "/api"

Handle = Callable[[str, str, Mapping[str, str], Any], answers.Answer]


class HttpxTransport(httpx.BaseTransport):
    """Hands the requests of an httpx client to the fake without any network."""

    def __init__(self, handle: Handle) -> None:
        self._handle = handle

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Answer one request; the path counts from after ``/api``."""
        try:
            answer = self._handle(
                request.method,
                _api_path(request.url.raw_path.decode()),
                dict(request.url.params),
                _parsed(request.read()),
            )
        except faults.ConnectionBroken as error:
            raise httpx.ReadError(str(error), request=request) from error
        return httpx.Response(answer.status, content=_content(answer), request=request)


@contextlib.contextmanager
def serve(handle: Handle, host: str, port: int) -> Iterator[str]:
    """Serve the fake over HTTP; gives the URL that PREFECT_API_URL has to be. Port 0 is any."""
    server = _Server((host, port), handle)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://{host}:{server.server_address[1]}{API_PREFIX}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(http_server.ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False  # an idle keep-alive connection would hold up the end
    request_queue_size = 128

    def __init__(self, address: tuple[str, int], handle: Handle) -> None:
        super().__init__(address, _Handler)
        self.handle_api = handle


class _Handler(http_server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    timeout = 5.0  # seconds until an idle connection is closed, as a Prefect server does
    server: _Server

    def _answer(self) -> None:
        target = urllib.parse.urlsplit(self.path)
        length = int(self.headers.get("Content-Length") or 0)
        params = dict(urllib.parse.parse_qsl(target.query))
        json_body = _parsed(self.rfile.read(length))
        try:
            answer = self.server.handle_api(self.command, _api_path(target.path), params, json_body)
        except faults.ConnectionBroken:
            self.close_connection = True
            return
        content = _content(answer)
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        if answer.status != 204:
            self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def _api_path(path: str) -> str:
    """The path after the prefix, still percent-encoded: a name may hold an encoded slash."""
    path = path.partition("?")[0]
    return path.removeprefix(API_PREFIX)


def _parsed(content: bytes) -> Any:
    return json.loads(content) if content else None


def _content(answer: answers.Answer) -> bytes:
    return b"" if answer.status == 204 else json.dumps(answer.body).encode()
