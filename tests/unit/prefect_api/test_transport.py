"""The transport: retries, credentials, CSRF, errors, threads and forks."""

from __future__ import annotations

import base64
import contextlib
import email.utils
import logging
import os
import socket
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import httpx
import pytest

from dispatcher import errors
from dispatcher.prefect_api import retry, transport
from dispatcher.testing import prefect_api
from dispatcher.testing.prefect_api import Fault, FaultKind
from tests import forking

URL = "http://prefect.test/api"
NOW = 1_800_000_000.0  # the time of day of all tests here
UNAVAILABLE = httpx.Response(503, json={"exception_message": "Service Unavailable"})
OK = httpx.Response(200, json=True)

Outcome = httpx.Response | Exception


class Time:
    """A clock that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds

    def monotonic(self) -> float:
        return self.now


class Script(httpx.BaseTransport):
    """Answers with the given outcomes, one after the other; the last one from then on."""

    def __init__(self, *outcomes: Outcome) -> None:
        self._outcomes = list(outcomes)
        self.requests: list[httpx.Request] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        request.read()
        self.requests.append(request)
        outcome = self._outcomes.pop(0) if len(self._outcomes) > 1 else self._outcomes[0]
        if isinstance(outcome, Exception):
            raise outcome
        return httpx.Response(outcome.status_code, headers=outcome.headers, content=outcome.content)


def connect(
    script: httpx.BaseTransport, time: Time | None = None, url: str = URL, **options: Any
) -> transport.Transport:
    time = time or Time()
    return transport.Transport(
        url,
        httpx_transport=script,
        sleep=time.sleep,
        monotonic=time.monotonic,
        clock=lambda: NOW,
        random=lambda: 1.0,
        **options,
    )


# Retries


@pytest.mark.parametrize(
    "failure",
    [
        httpx.Response(408),
        httpx.Response(429),
        httpx.Response(502, text="<html>bad gateway</html>"),
        UNAVAILABLE,
        httpx.Response(504),
        httpx.ReadError("reset"),
        httpx.WriteError("broken pipe"),
        httpx.RemoteProtocolError("server disconnected without sending a response"),
        httpx.LocalProtocolError("connection is closed"),
        httpx.ConnectError("connection refused"),
        httpx.ConnectTimeout("too slow"),
        httpx.ReadTimeout("too slow"),
        httpx.PoolTimeout("too many"),
    ],
    ids=lambda failure: getattr(failure, "status_code", type(failure).__name__),
)
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_passing_failure_is_retried(failure: Outcome, method: str) -> None:
    script = Script(failure, failure, OK)
    assert connect(script).request(method, "/x", json={"a": 1}) is True
    assert len(script.requests) == 3
    assert len({request.content for request in script.requests}) == 1


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 405, 409, 418, 422, 500])
def test_other_errors_are_not_retried(status: int) -> None:
    script = Script(httpx.Response(status))
    with pytest.raises(errors.ApiResponseError):
        connect(script).request("GET", "/x")
    assert len(script.requests) == 1


def test_pauses_double_from_short_to_a_cap() -> None:
    time = Time()
    with pytest.raises(errors.ApiUnreachable):
        connect(Script(UNAVAILABLE), time).request("GET", "/x")
    assert time.pauses == pytest.approx([0.15, 0.3, 0.6, 1.2, 2.4, 4.8, 5.0])


def test_half_of_each_pause_is_random() -> None:
    policy = retry.RetryPolicy(first_pause_seconds=0.2)
    assert policy.pause_seconds(1, 0.0, lambda: 0.0) == pytest.approx(0.1)
    assert policy.pause_seconds(1, 0.0, lambda: 1.0) == pytest.approx(0.2)


def test_attempts_are_bounded() -> None:
    script = Script(httpx.ConnectError("connection refused"))
    with pytest.raises(errors.ApiUnreachable) as caught:
        connect(script, retry_policy=retry.RetryPolicy(max_attempts=3)).request("GET", "/x")
    assert len(script.requests) == 3
    assert str(caught.value) == (
        "GET /x failed 3 times, at last with ConnectError: connection refused; "
        "check PREFECT_API_URL (http://prefect.test/api) and that the server runs."
    )


def test_seconds_are_bounded() -> None:
    time, script = Time(), Script(UNAVAILABLE)
    policy = retry.RetryPolicy(max_attempts=100, budget_seconds=12.0)
    with pytest.raises(errors.ApiUnreachable, match="503 Service Unavailable"):
        connect(script, time, retry_policy=policy).request("GET", "/x")
    assert 9.0 < time.now <= 12.0


def test_one_call_may_ask_only_once() -> None:
    script = Script(UNAVAILABLE)
    with pytest.raises(errors.ApiUnreachable):
        connect(script).request("GET", "/x", max_attempts=1)
    assert len(script.requests) == 1


@pytest.mark.parametrize(
    ("header", "pause"),
    [
        ("3", 3.6),
        (email.utils.formatdate(NOW + 5, usegmt=True), 6.0),
        (email.utils.formatdate(NOW - 5, usegmt=True), 0.15),
        ("0", 0.15),
        ("soon", 0.15),
        ("", 0.15),
    ],
)
def test_retry_after_is_the_least_pause(header: str, pause: float) -> None:
    time = Time()
    limited = httpx.Response(429, headers={"Retry-After": header})
    connect(Script(limited, OK), time).request("GET", "/x")
    assert time.pauses == pytest.approx([pause])


def test_a_retry_after_beyond_the_budget_is_not_waited_for() -> None:
    time = Time()
    limited = httpx.Response(429, headers={"Retry-After": "3600"})
    with pytest.raises(errors.ApiUnreachable):
        connect(Script(limited), time).request("GET", "/x")
    assert time.pauses == []


def test_each_retry_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="dispatcher")
    connect(Script(UNAVAILABLE, OK)).request("POST", "/flow_runs/{id}", names={"id": "1"})
    assert [record.getMessage() for record in caplog.records if record.name != "httpx"] == [
        "POST /flow_runs/1 failed with 503 Service Unavailable; attempt 2 of 8 in 0.15 s"
    ]


def test_a_request_is_reported_by_route_each_time_it_is_sent() -> None:
    sent: list[tuple[str, str]] = []
    connection = connect(
        Script(UNAVAILABLE, OK), on_request=lambda method, route: sent.append((method, route))
    )
    connection.request("GET", "/flow_runs/{id}", names={"id": "1"})
    assert sent == [("GET", "/flow_runs/{id}")] * 2


# Answers and errors


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, errors.RequestRefused),
        (401, errors.AuthenticationFailed),
        (403, errors.AuthenticationFailed),
        (404, errors.ObjectNotFound),
        (409, errors.ObjectAlreadyExists),
        (422, errors.RequestRefused),
        (500, errors.ApiResponseError),
        (307, errors.ApiResponseError),
    ],
)
@pytest.mark.parametrize("key", ["detail", "exception_message"])
def test_each_status_has_its_error_with_the_servers_words(
    status: int, kind: type[errors.ApiResponseError], key: str
) -> None:
    with pytest.raises(kind) as caught:
        connect(Script(httpx.Response(status, json={key: "its words"}))).request("GET", "/x")
    assert type(caught.value) is kind
    assert (caught.value.status_code, caught.value.detail) == (status, "its words")
    assert f"GET /x was answered with {status}: its words" in str(caught.value)


@pytest.mark.parametrize(
    ("body", "detail"),
    [
        (b"", ""),
        (b"<html>", ""),
        (b"[1]", ""),
        (b'{"detail": [{"loc": ["body", "a"], "msg": "no", "input": "secret"}]}', "body.a: no"),
        (b'{"exception_message": "m", "exception_detail": "d"}', "m d"),
        (
            b'{"exception_message": "m", "exception_detail": [{"loc": ["a", 0], "msg": "no"}, 1]}',
            "m a.0: no",
        ),
    ],
)
def test_error_bodies_of_any_shape(body: bytes, detail: str) -> None:
    with pytest.raises(errors.RequestRefused) as caught:
        connect(Script(httpx.Response(422, content=body))).request("GET", "/x")
    assert caught.value.detail == detail


def test_an_empty_answer_is_none_and_a_null_one_too() -> None:
    assert connect(Script(httpx.Response(204))).request("PATCH", "/x") is None
    assert connect(Script(httpx.Response(201, json=None))).request("POST", "/x") is None


def test_statuses_to_accept_can_be_named() -> None:
    script = Script(httpx.Response(404, json={"detail": "no"}))
    assert connect(script).request("GET", "/x", ok=(200, 404)) == {"detail": "no"}


def test_a_page_in_place_of_json_hints_at_the_url() -> None:
    page = httpx.Response(200, text="<html>the UI</html>")
    with pytest.raises(errors.ApiResponseError, match="does PREFECT_API_URL end in /api"):
        connect(Script(page)).request("GET", "/x")


def test_names_are_quoted_into_one_segment() -> None:
    script = Script(OK)
    name = "a/b ü#?+%41&"
    connect(script).request("GET", "/work_pools/{pool}", names={"pool": name})
    assert script.requests[0].url.raw_path == b"/api/work_pools/a%2Fb%20%C3%BC%23%3F%2B%2541%26"
    assert transport.quote(name) == "a%2Fb%20%C3%BC%23%3F%2B%2541%26"


# Credentials


def authorization(**options: Any) -> str | None:
    script = Script(OK)
    connect(script, **options).request("GET", "/x")
    value: str | None = script.requests[0].headers.get("Authorization")
    return value


def basic(text: str) -> str:
    return "Basic " + base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        ({"api_key": "key"}, "Bearer key"),
        ({"api_key": " key\n"}, "Bearer key"),
        ({"auth_string": "u:pä ss"}, basic("u:pä ss")),
        ({"auth_string": "u:p\n"}, basic("u:p")),
        ({"api_key": "key", "auth_string": "u:p"}, basic("u:p")),
        ({"url": "http://me%40x:p%3Aw@prefect.test/api"}, basic("me@x:p:w")),
        ({"url": "http://me:pw@prefect.test/api", "api_key": "key"}, "Bearer key"),
        ({"custom_headers": {"authorization": "Custom"}}, "Custom"),
        ({"custom_headers": {"authorization": "Custom"}, "api_key": "key"}, "Bearer key"),
    ],
)
def test_which_credentials_are_sent(options: dict[str, Any], expected: str | None) -> None:
    assert authorization(**options) == expected


def test_custom_headers_are_sent_but_cannot_change_who_we_are() -> None:
    script = Script(OK)
    connect(script, custom_headers={"X-Mine": "1", "user-agent": "other"}).request("GET", "/x")
    headers = script.requests[0].headers
    assert headers["X-Mine"] == "1"
    assert headers["User-Agent"].startswith("prefect/3.8.8+dispatcher.")
    assert headers["User-Agent"].endswith(" (API 0.8.4)")


@pytest.mark.parametrize(
    "url", ["", "prefect.test/api", "ftp://prefect.test", "http://u:hunter2@h:x"]
)
def test_a_url_that_is_none_is_refused_without_quoting_it(url: str) -> None:
    with pytest.raises(errors.SettingsError, match="PREFECT_API_URL") as caught:
        transport.Transport(url)
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None


@pytest.mark.parametrize(
    "options",
    [{"api_key": "hun\nter2"}, {"api_key": "hünter2"}, {"custom_headers": {"X": "hün\nter2"}}],
)
def test_a_value_that_no_header_can_carry_is_refused_without_quoting_it(
    options: dict[str, Any],
) -> None:
    with pytest.raises(errors.SettingsError, match="HTTP header cannot carry") as caught:
        transport.Transport(URL, **options)
    assert "ter2" not in str(caught.value)


@pytest.mark.parametrize(
    "outcome",
    [UNAVAILABLE, httpx.ConnectError("refused"), httpx.Response(401), httpx.Response(500), OK],
)
def test_secrets_appear_nowhere(outcome: Outcome, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    secrets = ["k3y-s3cret", "auth-s3cret", "url-s3cret", "header-s3cret"]
    connection = connect(
        Script(outcome),
        url="http://me:url-s3cret@prefect.test/api",
        api_key="k3y-s3cret",
        auth_string="me:auth-s3cret",
        custom_headers={"X-Token": "header-s3cret"},
    )
    shown = [repr(connection), str(connection), connection.api_url]
    try:
        connection.request("GET", "/x")
    except errors.ApiError as error:
        shown += [str(error), repr(error), repr(error.__cause__)]
    shown += [record.getMessage() for record in caplog.records]
    assert len(shown) >= 3
    secrets.append(basic("me:auth-s3cret"))
    assert not [text for text in shown for secret in secrets if secret in text]


# CSRF


class CsrfServer(httpx.BaseTransport):
    """Asks for tokens as a Prefect server does; a new one makes it forget the client's last."""

    def __init__(self) -> None:
        self.tokens: dict[str, str] = {}
        self.paths: list[str] = []

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        self.paths.append(request.url.path)
        if request.url.path == "/api/csrf-token":
            name = request.url.params["client"]
            self.tokens[name] = f"token-{len(self.paths)}"
            return httpx.Response(200, json={"token": self.tokens[name], "client": name})
        if request.method == "GET":
            return OK
        return self._checked(request.headers)

    def _checked(self, headers: httpx.Headers) -> httpx.Response:
        if "Prefect-Csrf-Token" not in headers:
            return httpx.Response(403, json={"detail": "Missing CSRF token."})
        known = self.tokens.get(headers["Prefect-Csrf-Client"])
        if known != headers["Prefect-Csrf-Token"]:
            detail = "Invalid CSRF token or client identifier."
            return httpx.Response(403, json={"detail": detail})
        return httpx.Response(200, json=True)


def test_a_token_is_fetched_only_when_the_server_asks_for_one() -> None:
    server = CsrfServer()
    connection = connect(server)
    connection.request("GET", "/read")
    connection.request("POST", "/write")
    connection.request("PATCH", "/write")
    assert server.paths == [
        "/api/read",
        "/api/write",
        "/api/csrf-token",
        "/api/write",
        "/api/write",
    ]


def test_a_token_that_is_no_longer_valid_is_fetched_again() -> None:
    server, time = CsrfServer(), Time()
    connection = connect(server, time)
    connection.request("POST", "/write")
    server.tokens.clear()
    connection.request("POST", "/write")
    assert server.paths.count("/api/csrf-token") == 2
    assert time.pauses == []


def test_a_token_that_never_satisfies_the_server_is_an_error() -> None:
    complaint = httpx.Response(403, json={"detail": "Invalid CSRF token or client identifier."})
    script = Script(complaint, httpx.Response(200, json={"token": "t"}), complaint)
    with pytest.raises(errors.AuthenticationFailed, match="Invalid CSRF token"):
        connect(script).request("POST", "/write")
    assert len(script.requests) == 3


def test_an_outage_while_fetching_a_token_is_retried() -> None:
    complaint = httpx.Response(403, json={"detail": "Missing CSRF token."})
    token = httpx.Response(200, json={"token": "t"})
    script = Script(complaint, UNAVAILABLE, complaint, token, OK)
    assert connect(script).request("POST", "/write") is True


# Lost requests and replies


@pytest.mark.parametrize("kind", [FaultKind.REQUEST_LOST, FaultKind.REPLY_LOST, FaultKind.REFUSED])
@pytest.mark.parametrize("over_http", [False, True])
def test_a_fault_between_us_and_the_server_is_overcome(kind: FaultKind, over_http: bool) -> None:
    fake = prefect_api.FakePrefect()
    route = "/work_pools/{pool}/workers/heartbeat"
    fake.client().create_work_pool("p", "process")
    fake.faults.append(Fault(kind, "POST", route, times=2))
    with fake.serve() as api_url:
        connection = transport.Transport(api_url) if over_http else fake.transport()
        names, body = {"pool": "p"}, {"name": "w", "heartbeat_interval_seconds": 30}
        assert connection.request("POST", route, names=names, json=body) is None
        connection.close()
    assert fake.requests["POST", route] == 3
    assert [worker.name for worker in fake.client().read_workers("p")] == ["w"]


def test_a_server_that_restarts_is_found_again() -> None:
    fake = prefect_api.FakePrefect()
    with fake.serve() as api_url:
        connection = transport.Transport(api_url)
        assert connection.request("GET", "/health") is True
    port = httpx.URL(api_url).port
    assert port is not None
    with fake.serve(port=port):
        assert connection.request("GET", "/health") is True
    connection.close()


def test_a_server_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    connection = transport.Transport(
        f"http://127.0.0.1:{port}/api", retry_policy=retry.RetryPolicy(max_attempts=2)
    )
    with pytest.raises(errors.ApiUnreachable, match="failed 2 times, at last with ConnectError"):
        connection.request("GET", "/health")
    connection.close()


def test_a_server_that_does_not_answer_in_time_is_unreachable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        connection = transport.Transport(
            f"http://127.0.0.1:{deaf.getsockname()[1]}/api", timeout_seconds=0.1
        )
        with pytest.raises(errors.ApiUnreachable, match="ReadTimeout"):
            connection.request("GET", "/health", max_attempts=1)
        connection.close()


# Threads and forks


@pytest.fixture
def served() -> Iterator[tuple[prefect_api.FakePrefect, transport.Transport]]:
    fake = prefect_api.FakePrefect()
    with fake.serve() as api_url:
        connection = transport.Transport(api_url)
        yield fake, connection
        connection.close()


def test_threads_share_one_transport(
    served: tuple[prefect_api.FakePrefect, transport.Transport],
) -> None:
    fake, connection = served

    def create(number: int) -> Any:
        body = {"name": f"variable-{number}", "value": number}
        connection.request("POST", "/variables/", json=body)
        names = {"name": f"variable-{number}"}
        return connection.request("GET", "/variables/name/{name}", names=names)["value"]

    with futures.ThreadPoolExecutor(8) as pool:
        assert list(pool.map(create, range(40))) == list(range(40))
    assert fake.requests["POST", "/variables/"] == 40


def test_a_fork_leaves_the_parents_connection_alone(
    served: tuple[prefect_api.FakePrefect, transport.Transport],
) -> None:
    fake, connection = served
    connection.request("GET", "/health")

    def in_the_child() -> None:
        for number in range(20):
            body = {"name": f"variable-{number}", "value": os.getpid()}
            connection.request("POST", "/variables/", json=body)
        connection.close()

    assert forking.succeeds(in_the_child)
    # Had the two shared a stream, an answer would have reached the wrong one of them.
    for _ in range(20):
        assert connection.request("GET", "/health") is True
    assert fake.requests["POST", "/variables/"] == 20


def test_a_closed_transport_opens_again(
    served: tuple[prefect_api.FakePrefect, transport.Transport],
) -> None:
    _, connection = served
    connection.request("GET", "/health")
    connection.close()
    connection.close()
    assert connection.request("GET", "/health") is True


@pytest.mark.parametrize(
    ("environment", "through_proxy"),
    [
        ({}, False),
        ({"http_proxy": "{proxy}"}, True),
        ({"all_proxy": "{proxy}"}, True),
        ({"http_proxy": "{proxy}", "no_proxy": "127.0.0.1"}, False),
    ],
)
def test_the_proxy_of_the_environment_is_used(
    environment: dict[str, str], through_proxy: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    fake, proxy = prefect_api.FakePrefect(), prefect_api.FakePrefect()
    with fake.serve() as api_url, proxy.serve() as proxy_url:
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(proxy=proxy_url.removesuffix("/api")))
        connection = transport.Transport(api_url, retry_policy=retry.RetryPolicy(max_attempts=1))
        with contextlib.suppress(errors.ApiError):
            connection.request("GET", "/health")
        connection.close()
    assert (fake.requests.total(), through_proxy) in {(1, False), (0, True)}
