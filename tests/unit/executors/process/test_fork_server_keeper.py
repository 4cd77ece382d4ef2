"""Which fork servers there are, and when one takes the place of another."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dispatcher.testing import executors
from executors import base
from executors.process import ProcessExecutor, ProcessJobConfiguration, starting
from executors.process import launch as launching
from executors.process.warm import fingerprint, fork_server_keeper, generations
from tests import waiting, warm

SECONDS = 20.0
QUICK = generations.Limits(quick_death=60.0, pause=300.0)

PLAIN = {
    "mode": "auto",
    "served": True,
    "is_default_command": True,
    "can_be_warm": True,
    "has_settings_file": False,
    "has_relative_path": False,
}


# How a job is to be started


@pytest.mark.parametrize(
    ("changes", "warm"),
    [
        ({}, True),
        ({"mode": "warm"}, True),
        ({"mode": "cold"}, False),
        ({"served": False}, False),
        ({"mode": "warm", "served": False}, False),
        ({"is_default_command": False}, False),
        ({"mode": "warm", "is_default_command": False}, False),
        ({"can_be_warm": False}, False),
        ({"has_settings_file": True}, False),
        ({"has_relative_path": True}, False),
    ],
)
def test_a_job_is_started_warm_where_that_is_the_same(
    changes: dict[str, object], warm: bool
) -> None:
    plan = starting.plan_start(**{**PLAIN, **changes})  # type: ignore[arg-type]

    assert plan.warm is warm
    assert plan.reason


def a_launch(directory: Path, command: tuple[str, ...], **env: str) -> launching.Launch:
    return launching.Launch(uuid.uuid4().hex, command, directory, warm.environment(**env))


@pytest.fixture
def starts(tmp_path: Path) -> starting.Starts:
    environ = {starting.DIRECTORY_VARIABLE: str(tmp_path), starting.MODE_VARIABLE: "auto"}
    return starting.Starts(environ, warm.ENGINE)


DEFAULT = (sys.executable, "-m", warm.ENGINE)


@pytest.mark.parametrize("file", [".env", "prefect.toml", "pyproject.toml"])
def test_settings_in_a_configured_directory_need_a_cold_start(
    starts: starting.Starts, tmp_path: Path, file: str
) -> None:
    (tmp_path / file).touch()
    launch = a_launch(tmp_path, DEFAULT)

    assert not starts.plan(launch, None, fresh_directory=False).warm
    assert starts.plan(launch, None, fresh_directory=True).warm


@pytest.mark.parametrize(
    "command",
    [
        ("python", "-m", warm.ENGINE),
        (sys.executable, "-m", warm.ENGINE, "argument"),
        (sys.executable, "-X", "dev", "-m", warm.ENGINE),
        ("uv", "run", *DEFAULT),
    ],
)
def test_any_other_command_needs_a_cold_start(
    starts: starting.Starts, tmp_path: Path, command: tuple[str, ...]
) -> None:
    assert not starts.plan(a_launch(tmp_path, command), "warm", fresh_directory=True).warm


@pytest.mark.parametrize("path", [".", "/a:b", "/a::/b", "/a:"])
def test_a_python_path_that_depends_on_the_directory_needs_a_cold_start(
    starts: starting.Starts, tmp_path: Path, path: str
) -> None:
    launch = a_launch(tmp_path, DEFAULT, PYTHONPATH=path)

    assert not starts.plan(launch, None, fresh_directory=True).warm


def test_what_the_job_says_outweighs_the_workers_setting(
    starts: starting.Starts, tmp_path: Path
) -> None:
    launch = a_launch(tmp_path, DEFAULT)
    cold = starting.Starts({starting.DIRECTORY_VARIABLE: "/", starting.MODE_VARIABLE: "cold"})

    assert not starts.plan(launch, "cold", fresh_directory=True).warm
    assert not cold.plan(launch, None, fresh_directory=True).warm


# Fingerprints


@pytest.mark.parametrize(
    "name",
    ["PREFECT_LOGGING_LEVEL", "PYTHONPATH", "LD_PRELOAD", "HOME", "LANG", "LC_ALL", "VIRTUAL_ENV"],
)
def test_another_setting_is_another_fingerprint(name: str) -> None:
    assert fingerprint.of({name: "1"}, sys.executable) != fingerprint.of(
        {name: "2"}, sys.executable
    )
    assert fingerprint.of({name: "1"}, sys.executable) != fingerprint.of({}, sys.executable)


@pytest.mark.parametrize("name", ["PREFECT__FLOW_RUN_ID", "DISPATCHER_JOB_ID", "DATABASE", "TZ"])
def test_what_a_job_sees_its_own_value_of_is_in_no_fingerprint(name: str) -> None:
    assert (
        fingerprint.of({name: "1"}, sys.executable)
        == fingerprint.of({name: "2"}, sys.executable)
        == fingerprint.of({}, sys.executable)
    )


@pytest.mark.parametrize(
    ("variable", "value", "file"),
    [
        ("PREFECT_PROFILES_PATH", "{}/mine.toml", "mine.toml"),
        ("PREFECT_HOME", "{}", "profiles.toml"),
        ("HOME", "{}", ".prefect/profiles.toml"),
    ],
)
def test_a_changed_profile_is_another_fingerprint(
    tmp_path: Path, variable: str, value: str, file: str
) -> None:
    environment = {variable: value.format(tmp_path)}
    profiles = tmp_path / file
    profiles.parent.mkdir(exist_ok=True)
    seen = {fingerprint.of(environment, sys.executable)}
    for text in ("one", "three"):
        profiles.write_text(text)
        seen.add(fingerprint.of(environment, sys.executable))

    assert len(seen) == 3


# Which servers there are


@contextlib.contextmanager
def job(servers: warm.Servers, directory: Path, **env: str) -> Iterator[psutil.Process]:
    """A running warm job; asks for a fork server and waits for it."""
    launch = a_launch(directory, DEFAULT, TEST_COMMAND="sleep 300", **env)
    process = servers.starts().start_warm(launch, "warm")
    assert process is not None
    try:
        yield psutil.Process(process.pid)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.reap()


def test_other_settings_get_a_fork_server_of_their_own(tmp_path: Path) -> None:
    with (
        warm.servers() as servers,
        job(servers, tmp_path) as plain,
        job(servers, tmp_path, PREFECT_LOGGING_LEVEL="DEBUG") as other,
    ):
        assert plain.ppid() != other.ppid()
        assert psutil.Process(other.ppid()).environ()["PREFECT_LOGGING_LEVEL"] == "DEBUG"
        assert "PREFECT_LOGGING_LEVEL" not in psutil.Process(plain.ppid()).environ()


def test_a_single_run_with_settings_of_its_own_starts_no_fork_server(tmp_path: Path) -> None:
    launch = a_launch(tmp_path, DEFAULT, TEST_COMMAND="true", PREFECT_LOGGING_LEVEL="DEBUG")
    name = fingerprint.of(launch.environment, sys.executable)
    with warm.servers() as servers:
        starts = servers.starts("auto")

        assert starts.start_warm(launch, None) is None
        assert len(servers.nursery.pids()) == 1
        assert starts.start_warm(launch, None) is None
        waiting.wait_for(
            (servers.directory / f"{name}.sock").exists,
            seconds=SECONDS,
            what="there is a fork server at the second time",
        )
        process = starts.start_warm(launch, None)
        assert process is not None
        assert process.wait() == 0
        process.reap()


def test_the_fork_server_that_was_idle_for_longest_makes_room(tmp_path: Path) -> None:
    with warm.servers() as servers:
        parents = []
        for level in ("DEBUG", "INFO", "ERROR"):
            with job(servers, tmp_path, PREFECT_LOGGING_LEVEL=level) as running:
                parents.append(running.ppid())
        default = servers.wait_until_ready(but=0)

        waiting.wait_for(
            lambda: not psutil.pid_exists(parents[0]), seconds=SECONDS, what="the first is gone"
        )
        assert len(servers.nursery.pids()) == 3
        assert psutil.pid_exists(parents[1])
        assert default


def test_a_fork_server_that_was_asked_to_end_stays_until_its_last_job_has_ended(
    tmp_path: Path,
) -> None:
    with warm.servers() as servers:
        with job(servers, tmp_path) as running:
            old = running.ppid()
            psutil.Process(old).send_signal(signal.SIGTERM)
            with pytest.raises(AssertionError):  # it takes no new ones
                waiting.wait_for(lambda: old not in servers.nursery.pids(), seconds=2, what="")
            assert running.is_running()

        waiting.wait_for(
            lambda: old not in servers.nursery.pids(), seconds=SECONDS, what="it has ended"
        )


GIB = 1 << 30


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({}, None),
        ({"now": 100.0 + 7 * 3600}, "old"),
        ({"size": GIB}, "grown by"),
        ({"packages": 8}, "packages"),
    ],
)
def test_a_fork_server_is_replaced(changes: dict[str, float], reason: str | None) -> None:
    process = subprocess.Popen(["true"])
    process.wait()
    server = generations.Server(process, born=100.0, size=80 << 20, packages=7)
    now = {"now": 200.0, "size": 90 << 20, "packages": 7, **changes}

    found = generations.reason_to_replace(server, limits=generations.Limits(), **now)  # type: ignore[arg-type]

    assert (reason is None and found is None) or (reason or "") in (found or "")


def test_an_old_fork_server_is_replaced_while_its_job_goes_on(tmp_path: Path) -> None:
    moments = [0.0]
    with warm.servers(clock=lambda: moments[0]) as servers, contextlib.ExitStack() as ended:
        first = ended.enter_context(job(servers, tmp_path))
        old = first.ppid()
        moments[0] = generations.Limits.age + 1
        servers.wait_until_ready(but=old)
        with job(servers, tmp_path) as second:
            assert second.ppid() != old
        assert first.is_running()
        assert old in servers.nursery.pids()
        ended.close()

        waiting.wait_for(
            lambda: old not in servers.nursery.pids(), seconds=SECONDS, what="the old one is gone"
        )


def test_a_fork_server_that_died_is_replaced(tmp_path: Path) -> None:
    with warm.servers() as servers:
        [first] = servers.ready()
        os.kill(first, signal.SIGKILL)

        servers.wait_until_ready(but=first)
        with job(servers, tmp_path) as running:
            assert running.ppid() != first


def test_after_quick_deaths_it_waits_and_says_so_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    environment = warm.environment(PYTHONPATH=f"{warm.ENGINES}:{tmp_path}")
    (tmp_path / "dies.py").write_text("import os; os._exit(9)")
    with warm.servers(environment=environment, preload=("dies",), eager=False) as servers:
        starts = servers.starts("auto")
        launch = a_launch(tmp_path, DEFAULT, PYTHONPATH=environment["PYTHONPATH"])
        assert starts.start_warm(launch, None) is None
        waiting.wait_for(
            lambda: "No fork server can be kept" in caplog.text, seconds=SECONDS, what="it says so"
        )
        time.sleep(2.5)

        assert servers.nursery.pids() == []
        assert caplog.text.count("No fork server can be kept") == 1


def test_a_default_fork_server_is_started_when_it_is_first_asked_for(tmp_path: Path) -> None:
    with warm.servers(eager=False) as servers:
        assert servers.nursery.pids() == []
        with job(servers, tmp_path):
            assert len(servers.nursery.pids()) == 1


def test_a_changed_profile_replaces_the_default_fork_server(tmp_path: Path) -> None:
    environment = warm.environment(PREFECT_HOME=str(tmp_path))
    with warm.servers(environment=environment) as servers:
        [first] = servers.ready()
        (tmp_path / "profiles.toml").write_text("")
        waiting.wait_for(
            lambda: first not in servers.nursery.pids(), seconds=SECONDS, what="the old one is gone"
        )
        with job(servers, tmp_path, PREFECT_HOME=str(tmp_path)) as running:
            assert running.ppid() != first


def test_a_guard_imports_nothing_and_forks_nothing(tmp_path: Path) -> None:
    with warm.servers(guard_only=True) as servers:
        [pid] = servers.ready()
        launch = a_launch(tmp_path, DEFAULT)

        assert servers.starts("auto").start_warm(launch, None) is None
        assert psutil.Process(pid).memory_info().rss < 25 << 20


# In a worker


def test_a_worker_process_is_served_once_and_leaves_nothing_behind() -> None:
    with fork_server_keeper.serving(base.NodeOptions(start="cold")):
        directory = Path(os.environ[starting.DIRECTORY_VARIABLE])
        assert directory.stat().st_mode & 0o777 == 0o700
        waiting.wait_for(
            lambda: list(directory.glob("*.ready")), seconds=SECONDS, what="a guard is ready"
        )
        [pid] = [int(path.read_text()) for path in directory.glob("*.ready")]
        with fork_server_keeper.serving(base.NodeOptions(start="cold")):
            assert os.environ[starting.DIRECTORY_VARIABLE] == str(directory)

    assert starting.DIRECTORY_VARIABLE not in os.environ
    assert not directory.exists()
    assert not psutil.pid_exists(pid)
    os.environ.pop(starting.MODE_VARIABLE, None)


# What a deployment says


@pytest.mark.parametrize(
    ("values", "mode"),
    [({}, None), ({"start": "warm"}, "warm"), ({"start": "cold"}, "cold"), ({"start": None}, None)],
)
def test_a_job_variable_says_how_to_start_in_any_pool(
    values: dict[str, str], mode: str | None
) -> None:
    template = {
        "job_configuration": {"command": "{{ command }}"},
        "variables": {"type": "object", "properties": {"command": {"type": "string"}}},
    }

    made = ProcessJobConfiguration.from_template_and_values(
        template, values, executors.NoReferences()
    )

    assert made.start == mode


@pytest.mark.parametrize("value", ["hot", 1, ["warm"], {"warm": True}])
def test_a_job_variable_that_is_no_way_to_start_is_left_out(
    value: object, caplog: pytest.LogCaptureFixture
) -> None:
    made = ProcessJobConfiguration.from_template_and_values(
        ProcessExecutor.get_default_base_job_template(), {"start": value}, executors.NoReferences()
    )

    assert made.start is None
    assert "job variable start" in caplog.text


def test_the_job_variable_is_no_part_of_the_template() -> None:
    # Prefect's own worker, in the same pool, must not meet it.
    template = ProcessExecutor.get_default_base_job_template()

    assert "start" not in template["job_configuration"]
    assert "start" not in template["variables"]["properties"]
