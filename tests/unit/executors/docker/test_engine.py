"""What the docker executor says of an engine that is not there, and of how containers end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import docker as docker_py
import pytest
from docker import errors as docker_errors
from docker.models.containers import Container

from dispatcher.testing.executors import NoReferences, new_flow_run
from executors import base, docker, errors
from executors.docker import engine, watching

PID = "http+docker://localhost:0123456789abcdef"


@pytest.fixture
def executor(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> base.BaseExecutor:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/no-such.sock")
    return docker.DockerExecutor()


@pytest.fixture
def job() -> docker.DockerJobConfiguration:
    made = docker.DockerJobConfiguration.from_template_and_values(
        docker.DockerExecutor.get_default_base_job_template(), {}, NoReferences()
    )
    made.prepare_for_flow_run(new_flow_run())
    return made


def ended(**state: Any) -> Container:
    """A container as the engine describes one that has ended."""
    limit = {"Memory": state.pop("memory", 0)}
    return Container(attrs={"Id": "1", "State": {"Status": "exited", **state}, "HostConfig": limit})


# Without an engine


def test_without_an_engine_no_job_starts_and_the_message_says_what_to_do(
    executor: base.BaseExecutor, job: docker.DockerJobConfiguration
) -> None:
    started: list[str] = []
    with pytest.raises(errors.LaunchError, match=r"does not answer: No such file.*DOCKER_HOST"):
        executor.run(new_flow_run(), job, started.append)
    assert started == []


def test_without_an_engine_nothing_can_be_said_of_a_container(
    executor: docker.DockerExecutor, job: docker.DockerJobConfiguration
) -> None:
    with pytest.raises(errors.InfrastructureNotAvailable):
        executor.kill_infrastructure(PID, job)
    with pytest.raises(errors.InfrastructureNotAvailable):
        executor.adopt(PID, job, lambda _: None)
    with pytest.raises(errors.InfrastructureNotAvailable):
        executor.find_infrastructure(new_flow_run(), job)


def test_an_engine_that_hangs_up_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "tcp://127.0.0.1:1")
    with (
        pytest.raises(engine.EngineAway, match=r"127\.0\.0\.1:1 does not answer"),
        engine.connect(),
    ):
        raise AssertionError


def test_errors_of_the_engine_are_told_in_its_words() -> None:
    refused = docker_errors.APIError("500 Server Error", explanation="no space left on device.")
    expected = pytest.raises(errors.LaunchError, match=r"failed: no space left on device\.$")
    with expected, engine.failing_as(errors.LaunchError):
        raise refused


# How a container ended


def test_success_needs_no_explanation() -> None:
    assert watching.describe(ended(ExitCode=0), 0) == watching.End(0, None)


def test_a_container_that_ran_out_of_memory_says_so_and_how_much_it_had() -> None:
    end = watching.describe(ended(ExitCode=137, OOMKilled=True, memory=64 * 2**20), 137)
    assert end.status_code == 137
    assert end.explanation is not None
    assert "out of memory: it may use 64 MiB" in end.explanation
    assert "mem_limit" in end.explanation


def test_a_host_without_memory_is_told_apart_from_a_limit() -> None:
    end = watching.describe(ended(ExitCode=137, OOMKilled=True), 137)
    assert end.explanation is not None
    assert "the host has no more" in end.explanation


def test_a_flow_that_lost_a_child_to_the_limit_but_succeeded_has_succeeded() -> None:
    assert watching.describe(ended(ExitCode=0, OOMKilled=True), 0).explanation is None


def test_a_signal_is_explained() -> None:
    explanation = watching.describe(ended(ExitCode=139), None).explanation
    assert explanation is not None
    assert "segmentation fault" in explanation


def test_a_container_that_removed_itself_has_the_status_that_waiting_told() -> None:
    assert watching.describe(None, 3).status_code == 3
    assert watching.describe(None, 0) == watching.End(0, None)


def test_a_container_that_was_removed_meanwhile_has_not_succeeded() -> None:
    end = watching.describe(None, None)
    assert end.status_code != 0
    assert end.explanation is not None
    assert "removed" in end.explanation


def test_an_engine_that_stays_away_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    client = docker_py.DockerClient(base_url="tcp://127.0.0.1:1", version="1.41")
    now = 0.0
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds
        naps.append(seconds)

    with pytest.raises(errors.ExecutorError, match="has not answered for 5 s"):
        watching.follow(client, "0123", engine_seconds=5, sleep=sleep, monotonic=lambda: now)
    assert len(naps) == 5
    client.close()
