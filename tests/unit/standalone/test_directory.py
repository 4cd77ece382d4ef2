from __future__ import annotations

import json
import os
import socket
import stat
from pathlib import Path

import pytest

from dispatcher.standalone import errors, ports
from dispatcher.standalone.directory import DataDirectory, write_private
from dispatcher.standalone.ports import Ports


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_data_directory_is_private_and_ignored_by_git(tmp_path: Path) -> None:
    data = DataDirectory(tmp_path / "deep" / "data")

    with data.locked():
        assert mode(data.path) == 0o700
        assert mode(data.logs) == 0o700
        assert (data.path / ".gitignore").read_text() == "*\n"


def test_password_is_private_and_stays_the_same(tmp_path: Path) -> None:
    password = DataDirectory(tmp_path).password()

    assert len(password) > 30
    assert DataDirectory(tmp_path).password() == password
    assert mode(tmp_path / "redis-password") == 0o600


def test_each_data_directory_has_a_password_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()

    assert DataDirectory(tmp_path).password() != DataDirectory(tmp_path / "other").password()


def test_private_file_is_replaced(tmp_path: Path) -> None:
    file = tmp_path / "file"
    write_private(file, "a longer text")
    write_private(file, "short")

    assert file.read_text() == "short"


def test_lock_is_held_once_and_names_its_holder(tmp_path: Path) -> None:
    with (
        DataDirectory(tmp_path).locked(),
        pytest.raises(errors.DataDirectoryUnusable, match=rf"pid {os.getpid()}\).*--data-dir"),
        DataDirectory(tmp_path).locked(),
    ):
        pass


def test_lock_is_free_again_afterwards(tmp_path: Path) -> None:
    for _ in range(2):
        with DataDirectory(tmp_path).locked():
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_directory_that_cannot_be_created_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with (
        pytest.raises(errors.DataDirectoryUnusable, match="cannot be used: Not a directory"),
        DataDirectory(tmp_path / "file" / "data").locked(),
    ):
        pass


def test_port_that_was_asked_for_is_taken_and_remembered(tmp_path: Path) -> None:
    port = ports.free_port()

    assert Ports(tmp_path / "ports.json").choose("prefect", asked=port) == port
    assert Ports(tmp_path / "ports.json").choose("prefect", asked=None) == port


def test_preferred_port_is_taken_if_it_is_free(tmp_path: Path) -> None:
    port = ports.free_port()

    assert Ports(tmp_path / "ports.json").choose("prefect", asked=None, preferred=port) == port


def test_another_port_is_chosen_if_the_preferred_one_is_in_use(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        port = Ports(tmp_path / "ports.json").choose("prefect", asked=None, preferred=taken)

    assert port != taken
    assert ports.is_free(port)


def test_remembered_port_that_is_in_use_is_an_error(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        (tmp_path / "ports.json").write_text(json.dumps({"flower": taken}))

        with pytest.raises(errors.PortUnusable, match=f"Port {taken} is in use.*--flower-port"):
            Ports(tmp_path / "ports.json").choose("flower", asked=None)


def test_one_port_is_not_given_twice(tmp_path: Path) -> None:
    own = Ports(tmp_path / "ports.json")
    port = own.choose("prefect", asked=None)

    with pytest.raises(errors.PortUnusable):
        own.choose("flower", asked=port)
    assert own.choose("flower", asked=None, preferred=port) != port
