"""The docker executor on a real engine."""

from __future__ import annotations

import logging
import os
import time
import uuid
from collections.abc import Iterator
from concurrent import futures
from typing import Any

import docker as docker_py
import pytest

from dispatcher.prefect_api import schemas
from dispatcher.testing import executors
from executors import base, docker, errors
from executors.docker import configuration, containers, watching
from tests import waiting
from tests.e2e import engine

IMAGE = {"image": engine.PYTHON_IMAGE, "stream_output": False}
LONG = "sleep 300"
SECONDS = 30.0


@pytest.fixture
def client() -> Iterator[docker_py.DockerClient]:
    connected = docker_py.from_env()
    yield connected
    connected.close()


@pytest.fixture(autouse=True)
def nothing_left(client: docker_py.DockerClient) -> Iterator[None]:
    """Remove the containers of a test, which stay by default."""
    yield
    own: dict[str, Any] = {"label": "io.prefect.flow-run-name=conformance"}
    for container in client.containers.list(all=True, filters=own):
        container.remove(force=True)


@pytest.fixture
def executor() -> docker.DockerExecutor:
    return docker.DockerExecutor()


def running(**values: Any) -> schemas.FlowRun:
    """A run as Prefect knows it while its container runs."""
    state = {"type": "RUNNING", "name": "Running"}
    return executors.new_flow_run().model_copy(
        update={"state": schemas.State.model_validate(state), **values}
    )


def configure(flow_run: schemas.FlowRun, **variables: Any) -> docker.DockerJobConfiguration:
    made = docker.DockerJobConfiguration.from_template_and_values(
        docker.DockerExecutor.get_default_base_job_template(),
        {**IMAGE, **variables},
        executors.NoReferences(),
    )
    made.prepare_for_flow_run(flow_run)
    return made


class Started:
    """Runs a job in a thread of its own, as an execute task does."""

    def __init__(self, executor: docker.DockerExecutor, flow_run: schemas.FlowRun, **vary: Any):
        self.configuration = configure(flow_run, **vary)
        self.identifiers: list[str] = []
        self._threads = futures.ThreadPoolExecutor(1)
        self.future = self._threads.submit(
            executor.run, flow_run, self.configuration, self.identifiers.append
        )

    def wait_started(self) -> str:
        waiting.wait_for(
            lambda: self.identifiers or self.future.done(), seconds=SECONDS, what="it starts"
        )
        if not self.identifiers:
            self.future.result()
        return self.identifiers[0]

    def result(self) -> base.ExecutorResult:
        return self.future.result(SECONDS)


class TestConformance(executors.ExecutorConformance):
    executor_class = docker.DockerExecutor
    job_variables = IMAGE


# What prefect-docker does as well


def test_the_infrastructure_pid_is_the_engine_and_the_container(
    executor: docker.DockerExecutor, client: docker_py.DockerClient
) -> None:
    job = Started(executor, executors.new_flow_run(), command="true")
    base_url, _, container_id = job.wait_started().rpartition(":")
    assert base_url == client.api.base_url
    assert client.containers.get(container_id).labels[configuration.FLOW_RUN_LABEL]
    assert job.result().status_code == 0


def test_a_taken_name_gets_a_number(
    executor: docker.DockerExecutor, client: docker_py.DockerClient
) -> None:
    name = f"clash-{uuid.uuid4().hex[:8]}"
    names = []
    for _ in range(3):
        job = Started(executor, executors.new_flow_run(), command="true", name=name)
        names.append(client.containers.get(job.wait_started().rpartition(":")[2]).name)
        job.result()
    assert names == [name, f"{name}-1", f"{name}-2"]


def test_a_container_removes_itself_if_asked_to_and_still_tells_its_status(
    executor: docker.DockerExecutor, client: docker_py.DockerClient
) -> None:
    job = Started(
        executor, executors.new_flow_run(), command="sh -c 'sleep 1; exit 3'", auto_remove=True
    )
    container_id = job.wait_started().rpartition(":")[2]
    assert job.result().status_code == 3
    waiting.wait_for(
        lambda: containers.get(client, container_id) is None, seconds=SECONDS, what="it is gone"
    )


def test_what_a_container_prints_is_shown(
    executor: docker.DockerExecutor, capfd: pytest.CaptureFixture[str]
) -> None:
    command = "sh -c 'echo to-output; echo to-error >&2'"
    job = Started(executor, executors.new_flow_run(), command=command, stream_output=True)
    job.result()
    shown = capfd.readouterr().out
    assert "to-output\n" in shown
    assert "to-error\n" in shown


def test_a_job_without_an_engine_is_told_by_its_exit_code_and_its_lines_are_logged(
    executor: docker.DockerExecutor, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    job = Started(
        executor,
        executors.new_flow_run(),
        command="sh -c 'echo to-output; echo to-error >&2; exit 1'",
        report="exit-code",
        stream_output=True,
    )
    result = job.result()
    assert result.status_code == 1
    assert result.explanation is None  # what is true of an engine alone is not said
    assert sorted(result.last_lines.splitlines()) == ["to-error", "to-output"]
    assert {"to-output", "to-error"} <= set(caplog.messages)


def test_mounts_limits_and_further_arguments_reach_the_container(
    executor: docker.DockerExecutor, client: docker_py.DockerClient, tmp_path: Any
) -> None:
    job = Started(
        executor,
        executors.new_flow_run(),
        command="true",
        volumes=[f"{tmp_path}:/data:ro"],
        mem_limit="64m",
        labels={"team": "a"},
        container_create_kwargs={"working_dir": "/data"},
    )
    attributes = client.containers.get(job.wait_started().rpartition(":")[2]).attrs
    job.result()
    assert attributes["HostConfig"]["Binds"] == [f"{tmp_path}:/data:ro"]
    assert attributes["HostConfig"]["Memory"] == 64 * 2**20
    assert attributes["Config"]["Labels"]["team"] == "a"
    assert attributes["Config"]["WorkingDir"] == "/data"


# Failures are told clearly


def test_a_missing_image_is_named_and_nothing_is_left(executor: docker.DockerExecutor) -> None:
    job = Started(executor, executors.new_flow_run(), image="no-such:1", image_pull_policy="Never")
    with pytest.raises(errors.LaunchError, match="'no-such:1' is not on the engine"):
        job.result()


def test_an_image_that_cannot_be_pulled_is_named_with_the_reason(
    executor: docker.DockerExecutor,
) -> None:
    job = Started(executor, executors.new_flow_run(), image="127.0.0.1:1/no-such:1")
    with pytest.raises(errors.LaunchError, match=r"no-such:1' could not be pulled"):
        job.result()


def test_the_present_image_does_if_it_cannot_be_pulled(
    executor: docker.DockerExecutor, client: docker_py.DockerClient
) -> None:
    name = "127.0.0.1:1/present"
    client.images.get(engine.PYTHON_IMAGE).tag(name, "1")
    try:
        job = Started(
            executor,
            executors.new_flow_run(),
            image=f"{name}:1",
            image_pull_policy="IfPossible",
            command="true",
        )
        assert job.result().status_code == 0
    finally:
        client.images.remove(f"{name}:1")


def test_a_missing_network_is_named(executor: docker.DockerExecutor) -> None:
    job = Started(executor, executors.new_flow_run(), command="true", networks=["no-such"])
    with pytest.raises(errors.LaunchError, match="no-such"):
        job.result()


def test_a_container_that_runs_out_of_memory_says_so(executor: docker.DockerExecutor) -> None:
    hungry = """python -c 'x = [b"x" * 2**20 for _ in range(200)]'"""
    limits = {"mem_limit": "32m", "memswap_limit": "32m"}
    result = Started(executor, executors.new_flow_run(), command=hungry, **limits).result()
    assert result.status_code == 137
    assert result.explanation is not None
    assert "out of memory: it may use 32 MiB" in result.explanation


def test_what_a_container_uses_is_known_while_it_goes_on(executor: docker.DockerExecutor) -> None:
    job = Started(
        executor,
        executors.new_flow_run(),
        command="""python -c 'import time; x = b"x" * (50 * 2**20); time.sleep(300)'""",
        memory_limit="200MiB",
    )
    identifier = job.wait_started()
    waiting.wait_for(
        lambda: (executor.memory_used(identifier) or 0) > 50 * 2**20,
        seconds=4 * watching.WAIT_SECONDS,
        what="its memory is known",
    )
    executor.kill_infrastructure(identifier, job.configuration, 0)
    job.result()
    assert executor.memory_used(identifier) is None


def test_a_container_of_another_engine_cannot_be_stopped_from_here(
    executor: docker.DockerExecutor,
) -> None:
    job = configure(executors.new_flow_run())
    with pytest.raises(errors.InfrastructureNotAvailable, match="tcp://other"):
        executor.kill_infrastructure("tcp://other:2375:0123", job)
    with pytest.raises(errors.InfrastructureNotFound):
        executor.kill_infrastructure("host:1234:", job)


# Killing


def test_prefects_launcher_may_cancel_its_run_by_itself(executor: docker.DockerExecutor) -> None:
    # It ends within its part of the grace, and SIGTERM would show in the status.
    command = "sh -c 'trap \"exit 9\" TERM; sleep 2; exit 0 # prefect flow-run execute'"
    job = Started(executor, executors.new_flow_run(), command=command)
    executor.kill_infrastructure(job.wait_started(), job.configuration, grace_seconds=20)
    assert job.result().status_code == 0


def test_an_engine_is_killed_since_it_would_make_a_crash_of_sigterm(
    executor: docker.DockerExecutor,
) -> None:
    command = "sh -c 'trap \"exit 9\" TERM; sleep 60 & wait # python -m prefect.engine'"
    job = Started(executor, executors.new_flow_run(), command=command)
    executor.kill_infrastructure(job.wait_started(), job.configuration, grace_seconds=20)
    assert job.result().status_code == 137


def test_others_get_sigterm_and_their_grace(executor: docker.DockerExecutor) -> None:
    command = "sh -c 'trap \"sleep 1; exit 9\" TERM; sleep 60 & wait'"
    job = Started(executor, executors.new_flow_run(), command=command)
    identifier = job.wait_started()
    time.sleep(0.5)  # for the shell to set its trap
    executor.kill_infrastructure(identifier, job.configuration, grace_seconds=20)
    assert job.result().status_code == 9


# Adoption


def abandoned(executor: docker.DockerExecutor, flow_run: schemas.FlowRun, command: str) -> str:
    """Start a container in a process that is killed, as a lost worker is; return its pid."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        with os.fdopen(write, "w", buffering=1) as report:
            job = configure(flow_run, command=command)
            executor.run(flow_run, job, lambda identifier: print(identifier, file=report))
        os._exit(0)
    os.close(write)
    with os.fdopen(read) as report:
        identifier = report.readline().strip()
    os.kill(child, 9)
    os.waitpid(child, 0)
    assert identifier
    return identifier


def test_a_container_outlives_its_worker_and_tells_another_how_it_ended(
    executor: docker.DockerExecutor,
) -> None:
    flow_run = running()
    identifier = abandoned(executor, flow_run, "sh -c 'sleep 2; exit 5'")
    found = executor.find_infrastructure(flow_run, configure(flow_run))
    assert found == identifier
    started: list[str] = []
    result = executor.adopt(found, configure(flow_run), started.append)
    assert started == [identifier]
    assert (result.identifier, result.status_code) == (identifier, 5)


def test_an_adopted_container_can_be_stopped(executor: docker.DockerExecutor) -> None:
    flow_run = running()
    identifier = abandoned(executor, flow_run, LONG)
    with futures.ThreadPoolExecutor(1) as threads:
        adopted = threads.submit(executor.adopt, identifier, configure(flow_run), lambda _: None)
        executor.kill_infrastructure(identifier, configure(flow_run), grace_seconds=0)
        assert adopted.result(SECONDS).status_code == 137


def test_one_that_ended_unattended_counts_if_its_run_is_running(
    executor: docker.DockerExecutor, client: docker_py.DockerClient
) -> None:
    flow_run = running()
    identifier = abandoned(executor, flow_run, "sh -c 'exit 4'")
    client.containers.get(identifier.rpartition(":")[2]).wait()
    known = flow_run.model_copy(update={"infrastructure_pid": identifier})
    assert executor.find_infrastructure(known, configure(known)) == identifier
    assert executor.adopt(identifier, configure(known), lambda _: None).status_code == 4
    pending = schemas.State.model_validate({"type": "PENDING", "name": "Pending"})
    again = known.model_copy(update={"state": pending})
    assert executor.find_infrastructure(again, configure(again)) is None


def test_nothing_is_found_of_a_run_that_has_no_container(executor: docker.DockerExecutor) -> None:
    flow_run = running(infrastructure_pid="http+docker://localhost:0123")
    assert executor.find_infrastructure(flow_run, configure(flow_run)) is None
    with pytest.raises(errors.InfrastructureNotFound):
        executor.adopt("http+docker://localhost:0123", configure(flow_run), lambda _: None)
