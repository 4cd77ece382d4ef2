"""The stack that ``docker-compose.yml`` describes, from its start to its removal."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.prefect_api import schemas
from executors.docker import configuration
from tests import waiting
from tests.e2e import browser, compose, engine

State = schemas.StateType
CONTAINERS = "containers"  # the work pool whose runs are containers
BOUND_SECONDS = 45.0  # after which every run has somebody who takes care of it


@pytest.fixture(scope="module")
def stack() -> Iterator[compose.Stack]:
    """The stack, also for work pools of type docker, with a pool of threads."""
    own = compose.Stack(WORK_POOLS=f"default,{CONTAINERS}", WORKER_POOL="threads", RUN_SLOTS="3")
    try:
        own.up()
        yield own
    finally:
        own.down()


@pytest.fixture(autouse=True)
def logs_of_a_failure(stack: compose.Stack, request: pytest.FixtureRequest) -> Iterator[None]:
    before = request.session.testsfailed
    yield
    if request.session.testsfailed > before:
        print(stack.logs())


@pytest.fixture(scope="module")
def pool(stack: compose.Stack) -> str:
    """A work pool of type docker, made as a user makes one."""
    stack.prefect.transport.request("DELETE", f"/work_pools/{CONTAINERS}")
    stack.objects.pool(CONTAINERS, type="docker")
    waiting.wait_for(
        lambda: stack.prefect.read_work_pool(CONTAINERS).base_job_template,
        seconds=60,
        what="the pool gets the docker executor's template",
    )
    return CONTAINERS


def container_deployment(
    stack: compose.Stack, pool: str, flow: str, **variables: Any
) -> schemas.Deployment:
    """A deployment whose runs are containers of our image, and reach the stack's Prefect."""
    return stack.deployment(
        flow,
        pool=pool,
        image=engine.OUR_IMAGE,
        image_pull_policy="Never",
        networks=[stack.network],
        **variables,
    )


def containers_of(stack: compose.Stack, run: schemas.FlowRun) -> list[str]:
    """The ids of a run's containers that run."""
    label = f"{configuration.FLOW_RUN_LABEL}={run.id}"
    return [str(each.id) for each in stack.docker.containers.list(filters={"label": label})]


def test_nothing_but_the_two_user_interfaces_is_published_and_only_on_loopback(
    stack: compose.Stack,
) -> None:
    published = {
        (each.labels[compose.SERVICE_LABEL], port["HostIp"], port["HostPort"])
        for each in stack.containers()
        for ports in each.attrs["NetworkSettings"]["Ports"].values()
        for port in ports or []
    }
    assert published == {
        ("prefect", "127.0.0.1", str(stack.prefect_port)),
        ("flower", "127.0.0.1", str(stack.flower_port)),
    }


def test_our_image_runs_as_an_ordinary_user_without_capabilities(stack: compose.Stack) -> None:
    [worker] = stack.containers("worker")
    assert worker.exec_run(["id", "-u"]).output == b"10001\n"
    assert worker.attrs["HostConfig"]["CapDrop"] == ["ALL"]
    assert stack.docker.images.get(engine.OUR_IMAGE).attrs["Config"]["StopSignal"] == "SIGTERM"


def test_one_command_deploys_the_samples_and_runs_them(stack: compose.Stack) -> None:
    printed = stack.compose("run", "--rm", "samples")
    assert printed.count("Completed\n") == 3, printed


def test_flower_wants_a_password_and_names_flow_runs_but_no_secrets(stack: compose.Stack) -> None:
    run = stack.run(stack.deployment("hello"), name="Flower")
    stack.wait_completed_once([run])
    assert stack.flower("/tasks")[0] == 401
    assert stack.flower("/api/tasks", password="wrong")[0] == 401
    password = stack.passwords[2]

    def shown() -> str:
        return stack.flower("/api/tasks?state=SUCCESS", password=password)[1]

    waiting.wait_for(lambda: f"('{run.name}', 'default')" in shown(), seconds=20, what="its name")
    for path in ("/workers", "/tasks", "/broker", "/api/workers?refresh=1", "/metrics"):
        text = stack.flower(path, password=password)[1]
        assert not [secret for secret in stack.passwords if secret in text], path
    workers = json.loads(stack.flower("/api/workers", password=password)[1])
    assert {name.partition("@")[0] for name in workers} == {"control", "runs"}


def test_a_browser_shows_the_fleet_in_both_user_interfaces(
    stack: compose.Stack, tmp_path: Path
) -> None:
    if browser.binary() is None:
        pytest.skip("no Chromium is installed")
    run = stack.run(stack.deployment("hello"))
    stack.wait_completed_once([run])
    flower = f"http://admin:{stack.passwords[2]}@127.0.0.1:{stack.flower_port}"
    with browser.chromium(tmp_path) as page:
        page.open(f"{flower}/workers")
        page.wait_for("runs@")
        page.open(f"{flower}/tasks")
        page.type("input[type=search]", "hello")
        page.wait_for(f"('{run.name}', 'default')")
        page.open(f"http://127.0.0.1:{stack.prefect_port}/work-pools/work-pool/default?tab=Workers")
        page.wait_for("celery-flow-dispatcher")
        page.wait_for("Online")


def test_a_flow_run_of_a_docker_pool_is_a_container_and_completes(
    stack: compose.Stack, pool: str
) -> None:
    deployment = container_deployment(stack, pool, "etl")
    run = stack.run(deployment)
    stack.wait_completed_once([run])
    pid = stack.prefect.read_flow_run(run.id).infrastructure_pid
    assert pid is not None
    ended = stack.docker.containers.get(pid.rpartition(":")[2])
    assert ended.labels[configuration.FLOW_RUN_LABEL] == str(run.id)
    assert ended.labels[configuration.ATTEMPT_LABEL]
    ended.remove(force=True)


def test_a_missing_image_crashes_its_run_clearly_and_no_other(
    stack: compose.Stack, pool: str
) -> None:
    bad = stack.deployment("hello", pool=pool, image="no-such:1", image_pull_policy="Never")
    broken, good = stack.run(bad), stack.run(stack.deployment("hello"))
    stack.wait_for(broken, State.CRASHED)
    assert "'no-such:1' is not on the engine" in (stack.state(broken).message or "")
    stack.wait_completed_once([good])


def test_cancelling_stops_the_container_also_on_a_pool_of_threads(
    stack: compose.Stack, pool: str
) -> None:
    deployment = container_deployment(stack, pool, "long_running", auto_remove=True)
    run = stack.run(deployment)
    stack.wait_for(run, State.RUNNING)
    assert len(containers_of(stack, run)) == 1
    stack.objects.propose(run.id, State.CANCELLING)
    stack.wait_for(run, State.CANCELLED, seconds=35 + 10)
    waiting.wait_for(lambda: not containers_of(stack, run), seconds=10, what="it is gone")
    assert [state.type for state in stack.objects.states(run.id)].count(State.CRASHED) == 0


def test_a_container_outlives_its_killed_worker_and_completes(
    stack: compose.Stack, pool: str
) -> None:
    deployment = container_deployment(stack, pool, "long_running", auto_remove=True)
    run = stack.run(deployment, seconds=40)
    stack.wait_for(run, State.RUNNING)
    [worker] = stack.containers("worker")
    worker.kill()
    worker.start()
    stack.wait_completed_once([run])


def test_three_workers_share_the_runs_and_are_replaced_without_losing_one(
    stack: compose.Stack,
) -> None:
    stack.up("--scale", "worker=3")
    waiting.wait_for(lambda: len(stack.nodes()) == 3, seconds=60, what="three workers")
    deployment = stack.deployment("long_running")
    runs = [stack.run(deployment, seconds=15) for _ in range(4)]
    for run in runs:
        stack.wait_for(run, State.RUNNING, State.COMPLETED)
    before = {each.id for each in stack.containers("worker")}
    stack.compose(
        "up",
        "--detach",
        "--no-build",
        "--no-deps",
        "--force-recreate",
        "--scale",
        "worker=3",
        "worker",
    )
    assert not before & {each.id for each in stack.containers("worker")}
    later = stack.run(stack.deployment("hello"))
    stack.wait_completed_once([*runs, later])


def test_down_leaves_nothing() -> None:
    own = compose.Stack()
    own.compose("up", "--detach", "--no-build", "redis")
    assert own.containers()
    own.down()
    mine: dict[str, Any] = {"label": f"{compose.PROJECT_LABEL}={own.project}"}
    assert own.docker.containers.list(all=True, filters=mine) == []
    assert own.docker.volumes.list(filters=mine) == []
    assert own.docker.networks.list(filters=mine) == []
