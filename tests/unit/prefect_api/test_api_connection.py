"""How the settings have the API reached: by which authorities, and by which HTTP."""

from __future__ import annotations

import http.server
import shutil
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher import errors, settings
from dispatcher.prefect_api import api_connection, retry
from tests import redis_topologies

ONCE = retry.RetryPolicy(max_attempts=1)


class Healthy(http.server.BaseHTTPRequestHandler):
    """Answers every question with true."""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "4")
        self.end_headers()
        self.wfile.write(b"true")

    def log_message(self, *_: object) -> None:
        """Nothing is said."""


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    directory = tmp_path_factory.mktemp("certificates")
    redis_topologies.make_certificates(directory)
    return directory


@pytest.fixture(scope="module")
def url(certificates: Path) -> Iterator[str]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Healthy) as server:
        server.socket = context.wrap_socket(server.socket, server_side=True)
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"https://localhost:{server.server_port}/api"
        server.shutdown()
        thread.join()


def is_healthy(url: str, **values: Any) -> bool:
    options = settings.Settings(work_pools=("p",), prefect_api_url=url, **values)
    api = api_connection.connect_api(options, retry_policy=ONCE)
    try:
        return api.is_healthy()
    finally:
        api.transport.close()


def test_an_authority_of_ones_own_is_trusted_if_its_file_is_named(
    url: str, certificates: Path
) -> None:
    assert not is_healthy(url)
    assert is_healthy(url, prefect_api_ssl_cert_file=str(certificates / "ca.crt"))
    assert not is_healthy(url, prefect_api_ssl_cert_file=str(certificates / "client.crt"))


def test_a_certificate_is_left_unchecked_only_if_that_is_said(url: str) -> None:
    assert is_healthy(url, prefect_api_tls_insecure_skip_verify=True)


@pytest.mark.parametrize("content", [None, "no certificate"])
def test_a_file_that_is_none_is_named(tmp_path: Path, content: str | None) -> None:
    file = tmp_path / "authorities"
    if content is not None:
        file.write_text(content)
    with pytest.raises(
        errors.SettingsError, match=r"PREFECT_API_SSL_CERT_FILE is wrong: .*authorities"
    ):
        is_healthy("https://localhost/api", prefect_api_ssl_cert_file=str(file))


def test_http2_is_spoken_where_both_sides_can(url: str, certificates: Path) -> None:
    assert is_healthy(
        url,
        prefect_api_enable_http2=True,
        prefect_api_ssl_cert_file=str(certificates / "ca.crt"),
    )
