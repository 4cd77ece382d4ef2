"""Sends requests to the Prefect API: connections, credentials, CSRF, retries, errors.

Only this module, ``answers`` and ``sockets`` know the HTTP library.
"""

from __future__ import annotations

import base64
import logging
import os
import random as random_module
import ssl
import threading
import time
import urllib.parse
import uuid
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx

import dispatcher
from dispatcher import errors
from dispatcher.prefect_api import answers, server_clock, sockets
from dispatcher.prefect_api import retry as retries

logger = logging.getLogger(__name__)

TIMEOUT_SECONDS = 60.0  # as Prefect's own client
# A server takes a client whose User-Agent it cannot read, or that is older than 3.4.11, for one
# that knows no concurrency leases, and revokes the lease of a run that such a client sets to
# Running or Cancelling. Ours reads like one of Prefect's own development builds: that
# version, plus who sent it.
USER_AGENT = f"prefect/3.8.8+dispatcher.{dispatcher.__version__} (API 0.8.4)"

_OK = (200, 201, 204)
# Those of a websocket's handshake are its library's own.
_HANDSHAKE_HEADERS = ("host", "connection", "upgrade", "user-agent")


def quote(name: str) -> str:
    """A name as one path segment; Prefect allows blanks, ``#``, ``?`` and more in names."""
    return urllib.parse.quote(name, safe="")


@dataclass(frozen=True)
class SocketAccess:
    """What a websocket to the API needs: its address, TLS for ``wss``, headers and the token.

    The token is what the first message carries, as it is; ``None`` for a server without
    authentication.
    """

    url: str
    tls: ssl.SSLContext | None
    headers: Mapping[str, str] = field(repr=False)
    token: str | None = field(repr=False)


class Transport:
    """A connection to one Prefect API, to be shared by threads and kept across forks.

    ``api_url`` ends in ``/api`` as ``PREFECT_API_URL`` does. With ``auth_string``
    (``user:password``) requests carry Basic credentials, else with ``api_key`` a Bearer token,
    else what ``api_url`` holds before its ``@``. ``tls`` is for https, the system's authorities
    if ``None``. ``on_request(method, route)`` is called for each
    request sent, repeated ones too; the route is the path with its placeholders unfilled.

    Raises:
        SettingsError: the URL or a credential cannot be sent at all.
    """

    def __init__(
        self,
        api_url: str,
        *,
        api_key: str | None = None,
        auth_string: str | None = None,
        custom_headers: Mapping[str, str] | None = None,
        timeout_seconds: float = TIMEOUT_SECONDS,
        retry_policy: retries.RetryPolicy | None = None,
        tls: ssl.SSLContext | None = None,
        http2: bool = False,
        httpx_transport: httpx.BaseTransport | None = None,
        on_request: Callable[[str, str], None] = lambda _method, _route: None,
        sleep: Callable[[float], None] = time.sleep,
        monotonic: Callable[[], float] = time.monotonic,
        clock: Callable[[], float] = time.time,
        random: Callable[[], float] = random_module.random,
    ) -> None:
        url, url_auth_string = _split_url(api_url)
        self._url = url
        self._token = auth_string or api_key or url_auth_string
        self._custom_headers = dict(custom_headers or {})
        self._headers = dict(_headers(custom_headers or {}, api_key, auth_string, url_auth_string))
        self._timeouts = httpx.Timeout(timeout_seconds).as_dict()
        self._retry_policy = retry_policy or retries.RetryPolicy()
        self._httpx_transport = httpx_transport
        self._tls = tls
        self._http2 = http2
        self._on_request = on_request
        self._sleep = sleep
        self._monotonic = monotonic
        self._clock = clock
        self.server_clock = server_clock.ServerClock(clock)
        self._random = random
        self._connections: dict[int, _Connection] = {}

    def __repr__(self) -> str:
        return f"Transport({str(self._url)!r})"

    @property
    def api_url(self) -> str:
        """Where the API is, without any credentials."""
        return str(self._url)

    def request(
        self,
        method: str,
        route: str,
        *,
        names: Mapping[str, str] | None = None,
        json: Any = None,
        params: Mapping[str, Any] | None = None,
        ok: Collection[int] = _OK,
        max_attempts: int | None = None,
    ) -> Any:
        """Send one request, again where that is worth while, and return the JSON of the answer.

        ``names`` fills the placeholders of ``route`` (``/work_pools/{name}``), percent-encoded.
        Returns ``None`` for an empty answer.

        Raises:
            ApiUnreachable: no answer, or only ones that ask to try again later.
            AuthenticationFailed: 401, or 403 for another reason than CSRF.
            ObjectNotFound: 404. ObjectAlreadyExists: 409. RequestRefused: 400 or 422.
            ApiResponseError: any other status that is not in ``ok``, or an answer without JSON.
        """
        path = route.format_map({key: quote(value) for key, value in (names or {}).items()})
        call = _Call(method, route, path, json, params)
        response = self._exchange(call, max_attempts or self._retry_policy.max_attempts)
        if response.status_code not in ok:
            raise answers.error(str(call), response)
        return answers.json(str(call), response)

    def socket(self, route: str) -> SocketAccess:
        """What a websocket to a route of the API needs."""
        is_secure = self._url.scheme == "https"
        scheme = "wss" if is_secure else "ws"
        return SocketAccess(
            url=f"{self._url.copy_with(scheme=scheme)}{route}",
            tls=(self._tls or httpx.create_ssl_context()) if is_secure else None,
            headers={
                name: value.strip()
                for name, value in self._custom_headers.items()
                if name.lower() not in _HANDSHAKE_HEADERS
                and not name.lower().startswith("sec-websocket-")
            },
            token=self._token.strip() if self._token else None,
        )

    def close(self) -> None:
        """Close this process's connections; a later request opens new ones."""
        connection = self._connections.pop(os.getpid(), None)
        if connection is not None:
            connection.sockets.close()

    def _exchange(self, call: _Call, max_attempts: int) -> httpx.Response:
        """The first answer that is not a request to come back later."""
        deadline = self._monotonic() + self._retry_policy.budget_seconds
        attempt = 1
        while True:
            outcome = self._attempt(call)
            if isinstance(outcome, httpx.Response):
                return outcome
            pause = self._retry_policy.pause_seconds(attempt, outcome.retry_after, self._random)
            if attempt >= max_attempts or self._monotonic() + pause > deadline:
                raise errors.ApiUnreachable(
                    f"{call} failed {attempt} times, at last with {outcome.text}; "
                    f"check PREFECT_API_URL ({self.api_url}) and that the server runs."
                ) from outcome.cause
            logger.debug(
                "%s failed with %s; attempt %d of %d in %.2f s",
                call, outcome.text, attempt + 1, max_attempts, pause,
            )  # fmt: skip
            self._sleep(pause)
            attempt += 1

    def _attempt(self, call: _Call) -> httpx.Response | _Failure:
        try:
            response = self._send_with_csrf(call)
        except httpx.RequestError as error:
            return _Failure(f"{type(error).__name__}: {error}", cause=error)
        if response.status_code not in retries.RETRYABLE_STATUS_CODES:
            return response
        retry_after = response.headers.get("Retry-After")
        return _Failure(
            f"{response.status_code} {answers.detail(response)}".rstrip(),
            retry_after=retries.retry_after_seconds(retry_after, self._clock()),
        )

    def _send_with_csrf(self, call: _Call) -> httpx.Response:
        """Send once; if the server asks for a CSRF token, fetch one and send again."""
        connection = self._connection()
        used = connection.csrf_headers
        response = self._send(connection, call, used)
        if not answers.is_csrf_complaint(response):
            return response
        with connection.csrf_lock:
            # A new token makes the server forget the last one, so one thread fetches it for all.
            if connection.csrf_headers == used:
                answer = self._send(connection, connection.csrf_call(), {})
                if answer.status_code != 200:
                    return answer
                connection.remember_csrf_token(answer.json()["token"])
        return self._send(connection, call, connection.csrf_headers)

    def _send(
        self, connection: _Connection, call: _Call, csrf_headers: Mapping[str, str]
    ) -> httpx.Response:
        self._on_request(call.method, call.route)
        request = httpx.Request(
            call.method,
            f"{self._url}{call.path}",
            json=call.json,
            params=call.params,
            headers={**self._headers, **csrf_headers},
            extensions={"timeout": self._timeouts},
        )
        response = connection.sockets.handle_request(request)
        self.server_clock.note(response.headers.get("Date"))
        try:
            response.read()
        except BaseException:
            response.close()
            raise
        return response

    def _connection(self) -> _Connection:
        """The connections of this process.

        Those of a parent are neither used nor closed here: both ends would share one stream. They
        stay in the table, so that nothing collects them. There is no lock around the table, since
        a fork may happen while another thread holds it.
        """
        pid = os.getpid()
        connection = self._connections.get(pid)
        if connection is None:
            made = self._httpx_transport or sockets.new_sockets(
                self._url, tls=self._tls, http2=self._http2
            )
            connection = self._connections.setdefault(pid, _Connection(made))
        return connection


@dataclass(frozen=True)
class _Call:
    """One request; its text names it in messages, without the query and the body."""

    method: str
    route: str
    path: str
    json: Any = field(default=None, repr=False)
    params: Mapping[str, Any] | None = None

    def __str__(self) -> str:
        return f"{self.method} {self.path}"


@dataclass(frozen=True)
class _Failure:
    """Why a request is worth repeating; ``retry_after`` in seconds."""

    text: str
    retry_after: float = 0.0
    cause: Exception | None = None


class _Connection:
    """What belongs to one process: its sockets and its CSRF token."""

    def __init__(self, opened: httpx.BaseTransport) -> None:
        self.sockets = opened
        self.csrf_lock = threading.Lock()
        self.csrf_headers: Mapping[str, str] = {}
        self._csrf_client = str(uuid.uuid4())

    def csrf_call(self) -> _Call:
        route = "/csrf-token"
        return _Call("GET", route, route, params={"client": self._csrf_client})

    def remember_csrf_token(self, token: str) -> None:
        self.csrf_headers = {
            "Prefect-Csrf-Token": token,
            "Prefect-Csrf-Client": self._csrf_client,
        }


def _split_url(api_url: str) -> tuple[httpx.URL, str | None]:
    """The URL without credentials, and the credentials that it held."""
    try:
        url = httpx.URL(api_url.strip().rstrip("/"))
    except httpx.InvalidURL:
        # Neither the text nor the cause: they may hold a password.
        raise errors.SettingsError("PREFECT_API_URL is not a URL.") from None
    if url.scheme not in {"http", "https"} or not url.host:
        raise errors.SettingsError(
            "PREFECT_API_URL must start with http:// or https:// and name a host."
        )
    auth_string = f"{url.username}:{url.password}" if url.userinfo else None
    return url.copy_with(userinfo=b"", query=None, fragment=None), auth_string


def _headers(
    custom: Mapping[str, str],
    api_key: str | None,
    auth_string: str | None,
    url_auth_string: str | None,
) -> httpx.Headers:
    """The headers of every request; ours win over custom ones of the same name."""
    headers = httpx.Headers({"Accept": "application/json", "Accept-Encoding": "gzip, deflate"})
    headers.update({name: _header_value(value, name) for name, value in custom.items()})
    headers["User-Agent"] = USER_AGENT
    if auth_string:
        headers["Authorization"] = _basic(auth_string)
    elif api_key:
        headers["Authorization"] = f"Bearer {_header_value(api_key, 'PREFECT_API_KEY')}"
    elif url_auth_string:
        headers["Authorization"] = _basic(url_auth_string)
    return headers


def _basic(auth_string: str) -> str:
    return "Basic " + base64.b64encode(auth_string.strip().encode()).decode()


def _header_value(value: str, name: str) -> str:
    """A value that can be sent: the library's own complaint about a bad one would quote it."""
    value = value.strip()
    if not (value.isascii() and value.isprintable()):
        raise errors.SettingsError(f"{name} holds characters that an HTTP header cannot carry.")
    return value
