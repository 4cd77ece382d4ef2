from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

import dispatcher
from dispatcher import cli, errors
from dispatcher.standalone.directory import DataDirectory


def run_python(code: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False
    )


def test_help_names_every_command() -> None:
    result = CliRunner().invoke(cli.main, ["--help"])

    assert result.exit_code == 0
    for name, help_text in cli.COMMANDS.items():
        assert name in result.output
        assert help_text.split()[0] in result.output


def test_help_imports_nothing_that_is_slow() -> None:
    code = """
import sys
from dispatcher.cli import main
main(["--help"], standalone_mode=False)
print(*sorted(sys.modules))
"""
    modules = run_python(code).stdout.splitlines()[-1].split()

    assert not {"celery", "httpx", "prefect", "pydantic", "redis", "rich"} & set(modules)


@pytest.mark.parametrize("name", cli.COMMANDS)
def test_each_command_has_help(name: str) -> None:
    result = CliRunner().invoke(cli.main, [name, "--help"])

    assert result.exit_code == 0
    assert "Options:" in result.output


def test_version() -> None:
    result = CliRunner().invoke(cli.main, ["--version"])

    assert result.output.split()[-1] == dispatcher.__version__


def test_unknown_command_is_refused() -> None:
    result = CliRunner().invoke(cli.main, ["fly"])

    assert result.exit_code == 2
    assert "fly" in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        ["standalone", "--prefect-port", "65536"],
        ["standalone", "--flower-port", "none"],
        ["standalone", "--concurrency", "0"],
        ["standalone", "--grace", "-1"],
        ["demo", "--timeout", "0"],
    ],
)
def test_values_out_of_range_are_refused(arguments: list[str]) -> None:
    result = CliRunner().invoke(cli.main, arguments)

    assert result.exit_code == 2
    assert arguments[1] in result.output


def test_error_of_the_dispatcher_is_one_line_and_no_traceback(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        result = CliRunner().invoke(
            cli.main, ["standalone", "--data-dir", str(tmp_path), "--prefect-port", port]
        )

    assert result.exit_code == 1
    assert result.output.startswith(f"Error: Port {port} is in use")
    assert "--prefect-port" in result.output
    assert len(result.output.splitlines()) == 1
    assert isinstance(result.exception, SystemExit)


def test_second_stack_on_a_data_directory_is_refused(tmp_path: Path) -> None:
    with DataDirectory(tmp_path).locked():
        result = CliRunner().invoke(cli.main, ["standalone", "--data-dir", str(tmp_path)])

    assert result.exit_code == 1
    assert f"in use by another dispatcher (pid {os.getpid()})" in result.output
    assert len(result.output.splitlines()) == 1


def test_missing_packages_are_named_with_what_to_install(tmp_path: Path) -> None:
    code = """
import sys
sys.modules["prefect"] = sys.modules["flower"] = None  # as if they were not installed
from dispatcher.cli import main
main(["standalone", "--data-dir", sys.argv[1]])
"""
    result = run_python(code, str(tmp_path))

    assert result.returncode == 1
    assert result.stderr == (
        "Error: Not installed: prefect, flower. "
        "Run: pip install 'celery-flow-dispatcher[standalone]'\n"
    )


def test_every_error_of_the_dispatcher_can_be_shown() -> None:
    assert str(errors.DispatcherError()) == "The dispatcher could not do what was asked."
