"""The Python of a flow's own environment: how it is named, and what is wrong with one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from executors import errors
from executors.process import ProcessJobConfiguration, interpreters
from executors.process.engine_control import protocol
from executors.process.warm import fork_server_keeper, generations
from tests import waiting, warm

SECONDS = 10.0


def make_environment(path: Path) -> Path:
    """A virtual environment of this very Python, without packages."""
    (path / "bin").mkdir(parents=True)
    python = path / "bin" / "python"
    python.symlink_to(Path(sys.executable).resolve())
    home = Path(sys.executable).resolve().parent
    (path / "pyvenv.cfg").write_text(f"home = {home}\ninclude-system-site-packages = false\n")
    return python


def script(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def examine(python: str, engine: str = protocol.ENGINE_MODULE) -> interpreters.Interpreter:
    return interpreters.examine(python, engine, {})


def test_it_is_named_by_its_path_or_that_of_its_environment(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    assert interpreters.path_of(str(python)) == str(python)
    assert interpreters.path_of(str(tmp_path / "venv")) == str(python)
    assert interpreters.path_of(None) == interpreters.path_of("") == sys.executable


def test_its_programs_come_first(tmp_path: Path) -> None:
    python = make_environment(tmp_path / "venv")
    inherited = {"PATH": "/bin", "VIRTUAL_ENV": "/worker"}
    assert interpreters.activated(inherited, str(python)) == {
        "PATH": f"{tmp_path}/venv/bin:/bin",
        "VIRTUAL_ENV": f"{tmp_path}/venv",
    }
    assert interpreters.activated(inherited, sys.executable) == inherited
    assert interpreters.activated(inherited, "/usr/bin/python3") == inherited


def test_it_says_what_it_is(tmp_path: Path) -> None:
    found = examine(str(make_environment(tmp_path / "venv")), "json.tool")
    assert found.python == sys.version_info[:2]
    assert found.release == ""
    assert found.can_be_warm
    assert all(path.startswith(str(tmp_path)) for path in found.packages)


@pytest.mark.parametrize(
    ("python", "release", "fits"),
    [
        ((3, 10), "3.6.29", True),
        ((3, 14), "3.9.1", True),
        ((3, 9), "3.6.29", False),
        ((3, 11), "3.4.25", False),
        ((3, 11), "2.20.0", False),
        ((3, 11), "", True),
    ],
)
def test_old_ones_are_started_cold(python: tuple[int, int], release: str, fits: bool) -> None:
    assert interpreters.Interpreter(python, release, ()).can_be_warm is fits


def test_what_is_wrong_with_one_is_told_in_a_sentence(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    cases = {
        str(tmp_path / "missing"): "does not exist on this host",
        str(tmp_path): "does not exist on this host",
        str(plain): "is not executable",
        script(tmp_path / "broken", "echo it broke >&2; exit 3"): "it broke",
        script(tmp_path / "silent", "exit 3"): "it exits with 3",
        script(tmp_path / "other", "echo hello"): "answers something else",
        str(make_environment(tmp_path / "venv")): "has no package 'prefect'",
    }
    for python, complaint in cases.items():
        with pytest.raises(errors.LaunchError, match=complaint):
            examine(python)


def test_a_mistake_is_forgotten_once_it_is_mended(tmp_path: Path) -> None:
    python = str(tmp_path / "venv" / "bin" / "python")
    with pytest.raises(errors.LaunchError):
        examine(python, "json.tool")
    make_environment(tmp_path / "venv")
    assert examine(python, "json.tool").can_be_warm


def test_one_that_hangs_is_given_up(tmp_path: Path) -> None:
    slow = script(tmp_path / "slow", "exec sleep 60")
    with pytest.raises(errors.LaunchError, match="does not answer"):
        interpreters.examine(slow, protocol.ENGINE_MODULE, {}, timeout_seconds=0.2)


def test_the_job_variable_wins_over_the_workers_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    configuration = ProcessJobConfiguration()
    assert configuration.python == sys.executable
    monkeypatch.setenv(interpreters.PYTHON_SETTING, "/worker/python")
    assert configuration.python == "/worker/python"
    configuration.take_variables({interpreters.PYTHON_VARIABLE: str(make_environment(tmp_path))})
    assert configuration.python == str(tmp_path / "bin" / "python")
    with pytest.raises(errors.ConfigurationError, match="no path of an interpreter"):
        configuration.take_variables({interpreters.PYTHON_VARIABLE: 3})


def test_a_wrong_setting_is_one_line_and_keeps_no_worker_from_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    missing = str(tmp_path / "missing")
    assert fork_server_keeper.default_python(missing, {}) == sys.executable
    [said] = caplog.messages
    assert said.startswith("DISPATCHER_PYTHON is wrong: The interpreter")
    assert fork_server_keeper.default_python(None, {}) == sys.executable


def test_an_environment_that_is_taken_away_costs_its_fork_server_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    python = make_environment(tmp_path / "venv")
    with warm.servers(limits=generations.Limits(requests=1)) as servers:
        python.unlink()
        breed = generations.Breed("taken-away", str(python), {}, ())
        servers.nursery.ask_for(breed, urgent=True)
        waiting.wait_for(
            lambda: f"{python} can have no fork server" in caplog.text,
            seconds=SECONDS,
            what="it is told",
        )
        servers.nursery.check()
        assert caplog.text.count("can have no fork server") == 1
        assert len(servers.ready()) == 1
