"""What Prefect's clients trust, in a fork server."""

from __future__ import annotations

import os
import shutil
import ssl
from pathlib import Path

import certifi
import pytest

from executors.process.fork_server.engine import shared_certificates


@pytest.fixture
def file(tmp_path: Path) -> str:
    return shutil.copy(certifi.where(), str(tmp_path / "authorities.pem"))


def test_whoever_trusts_the_same_file_has_the_same_context(file: str) -> None:
    shared = shared_certificates.SharedAuthorities()
    first = shared.create_default_context(cafile=file)
    assert shared.create_default_context(cafile=file) is first
    assert first.verify_mode is ssl.CERT_REQUIRED
    assert first.check_hostname
    own = ssl.create_default_context(cafile=file)
    assert first.get_ca_certs() == own.get_ca_certs() != []


def test_a_file_that_has_changed_is_read_again(file: str) -> None:
    shared = shared_certificates.SharedAuthorities()
    first = shared.create_default_context(cafile=file)
    pem = Path(file).read_text()
    one = pem[: pem.index("-----END CERTIFICATE-----") + 26]
    Path(file).write_text(one[one.index("-----BEGIN") :])
    second = shared.create_default_context(cafile=file)
    assert len(second.get_ca_certs()) == 1 < len(first.get_ca_certs())
    os.utime(file, (0, 0))
    assert shared.create_default_context(cafile=file) is not second


def test_a_context_that_its_owner_is_about_to_change_is_nobody_elses(file: str) -> None:
    shared = shared_certificates.SharedAuthorities()
    assert shared.create_default_context() is not shared.create_default_context()
    for purpose in (ssl.Purpose.SERVER_AUTH, ssl.Purpose.CLIENT_AUTH):
        first = shared.create_default_context(purpose, cafile=file)
        assert shared.create_default_context(purpose, cafile=file) is not first


def test_a_file_that_is_not_there_is_told_of_as_ever(tmp_path: Path) -> None:
    shared = shared_certificates.SharedAuthorities()
    with pytest.raises(FileNotFoundError):
        shared.create_default_context(cafile=str(tmp_path / "missing.pem"))


def test_everything_else_is_as_in_the_module_itself() -> None:
    shared = shared_certificates.SharedAuthorities()
    assert shared.SSLContext is ssl.SSLContext
    assert shared.CERT_NONE is ssl.CERT_NONE
    with pytest.raises(AttributeError):
        shared.does_not_exist  # noqa: B018
