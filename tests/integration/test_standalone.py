"""The stack as users start it: real servers, real signals."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from dispatcher.standalone import stack
from tests.commands import Command

START_SECONDS = 150.0  # the first start creates Prefect's database
READY = "Ctrl-C stops everything"
VARIABLE = {"name": "kept", "value": "over a restart"}


@dataclasses.dataclass(frozen=True)
class Restarted:
    """A stack that was started, stopped with Ctrl-C and started again."""

    first: str  # what the first start printed
    exit_code: int
    left_over: list[psutil.Process]
    command: Command


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all starts have their data, so that only one of them creates a database."""
    return tmp_path_factory.mktemp("standalone")


@contextlib.contextmanager
def started(directory: Path, name: str) -> Iterator[Command]:
    """A stack that is ready."""
    options = ("--data-dir", str(directory / "data"), "--concurrency", "1", "--grace", "5")
    with Command("standalone", *options, output=directory / name) as command:
        command.wait_for_output(READY, seconds=START_SECONDS)
        yield command


@pytest.fixture(scope="module")
def restarted(directory: Path) -> Iterator[Restarted]:
    with started(directory, "first") as command:
        call(address(command.output, "Prefect API") + "/variables/", VARIABLE)
        command.send(signal.SIGINT)
        exit_code, left_over, first = command.wait(), command.processes(), command.output
    with started(directory, "second") as command:
        yield Restarted(first, exit_code, left_over, command)


def address(output: str, name: str) -> str:
    """What the summary says after a name."""
    line = next(each for each in output.splitlines() if each.startswith(name))
    return line.removeprefix(name).strip()


def status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        error.close()
        return error.code


def call(url: str, body: object = None) -> dict[str, Any]:
    request = urllib.request.Request(url, headers={"Content-Type": "application/json"})
    if body is not None:
        request.data = json.dumps(body).encode()
    with urllib.request.urlopen(request, timeout=10) as answer:
        answered: dict[str, Any] = json.load(answer)
        return answered


def test_everything_answers(restarted: Restarted) -> None:
    output = restarted.command.output

    assert status(address(output, "Prefect UI")) == 200
    assert status(address(output, "Prefect API") + "/work_pools/default") == 200
    assert status(address(output, "Flower")) == 200


def test_flower_gives_strangers_no_api(restarted: Restarted) -> None:
    assert status(address(restarted.command.output, "Flower") + "/api/workers") == 401


def test_each_component_has_a_log(restarted: Restarted, directory: Path) -> None:
    logs = {path.name for path in directory.joinpath("data", "logs").iterdir()}

    assert logs == {f"{name}.log" for name in stack.STOP_ORDER}


def test_ctrl_c_stops_in_order_and_leaves_no_process(restarted: Restarted) -> None:
    assert restarted.exit_code == 0
    assert restarted.left_over == []
    stopped = [each for each in restarted.first.splitlines() if each.startswith("stopping")]
    assert stopped == [f"stopping {name}" for name in stack.STOP_ORDER]


@pytest.mark.parametrize("name", ["Prefect UI", "Prefect API", "Flower"])
def test_restart_keeps_addresses(restarted: Restarted, name: str) -> None:
    assert address(restarted.command.output, name) == address(restarted.first, name)


def test_restart_keeps_data(restarted: Restarted) -> None:
    api = address(restarted.command.output, "Prefect API")

    assert VARIABLE.items() <= call(f"{api}/variables/name/kept").items()


def test_second_stack_on_a_data_directory_is_refused(
    restarted: Restarted, directory: Path, tmp_path: Path
) -> None:
    options = ("--data-dir", str(directory / "data"))
    with Command("standalone", *options, output=tmp_path / "output") as second:
        assert second.wait() == 1
        assert "in use by another dispatcher" in second.output
        assert second.processes() == []


def test_killed_worker_is_started_again(restarted: Restarted) -> None:
    tether = run_worker_tether(restarted.command)
    tether.children()[0].kill()

    restarted.command.wait_for_output("runs ended with exit code 137", seconds=30)
    restarted.command.wait_for_output("runs is back", seconds=60)

    assert not tether.is_running()
    assert run_worker_tether(restarted.command).children()


def run_worker_tether(command: Command) -> psutil.Process:
    return next(each for each in command.processes() if is_run_worker_tether(each))


def is_run_worker_tether(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.Error):
        line = " ".join(process.cmdline())
        return "tether.py" in line and "dispatcher.runs" in line
    return False


def test_killed_supervisor_leaves_no_process(tmp_path_factory: pytest.TempPathFactory) -> None:
    with started(tmp_path_factory.mktemp("killed"), "output") as command:
        assert len(command.processes()) > len(stack.STOP_ORDER)

        command.send(signal.SIGKILL)

        command.wait_for_no_process(seconds=30)


def test_component_that_cannot_start_is_named_with_the_end_of_its_log(
    tmp_path: Path,
) -> None:
    valkey = tmp_path / "data" / "valkey"
    (valkey / "appendonlydir").mkdir(parents=True)
    (valkey / "appendonlydir" / "appendonly.aof.manifest").write_text("nonsense\n")

    with Command(
        "standalone", "--data-dir", str(tmp_path / "data"), output=tmp_path / "output"
    ) as command:
        assert command.wait() == 1
        assert command.processes() == []

    assert "Error: redis ended with exit code 1" in command.output
    assert str(tmp_path / "data" / "logs" / "redis.log") in command.output
    assert "manifest" in command.output.rpartition("Error:")[2]
