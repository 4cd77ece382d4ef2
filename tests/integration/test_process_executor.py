"""The process executor with Prefect's real engine and server, started cold and warm."""

from __future__ import annotations

import json
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator, Mapping
from concurrent import futures
from pathlib import Path
from types import MappingProxyType
from typing import Any

import psutil
import pytest

from dispatcher.prefect_api import client as clients
from dispatcher.prefect_api import schemas
from executors import base
from executors.process import ProcessExecutor, ProcessJobConfiguration, starting
from executors.process.engine_control import protocol
from tests import prefect_server as prefect_servers
from tests import waiting, warm

FLOWS = Path(__file__).parent.parent / "flows"
START_SECONDS = 120.0  # an engine starts in 5 s on an idle machine
GRACE_SECONDS = 20.0
STUBBORN_GRACE_SECONDS = 3.0
KILL_SECONDS = 10.0

State = schemas.StateType


class Run:
    """A flow run in Pending, its job and what the flow wrote into its report."""

    def __init__(
        self,
        executor: ProcessExecutor,
        flow_run: schemas.FlowRun,
        configuration: ProcessJobConfiguration,
        report: Path,
    ) -> None:
        self.flow_run = flow_run
        self.configuration = configuration
        self.executor = executor
        self.infrastructure_pid: str | None = None
        self.parent = 0
        self._report = report

    def execute(self) -> base.ExecutorResult:
        return self.executor.run(self.flow_run, self.configuration, self._started)

    def stop(self, grace_seconds: float = GRACE_SECONDS) -> None:
        assert self.infrastructure_pid is not None
        self.executor.kill_infrastructure(
            self.infrastructure_pid, self.configuration, grace_seconds
        )

    @property
    def pid(self) -> int:
        assert self.infrastructure_pid is not None
        return int(self.infrastructure_pid.rpartition(":")[2])

    def report(self) -> list[str]:
        return self._report.read_text().splitlines() if self._report.exists() else []

    def wait_for(self, start: str) -> str:
        """Wait for the flow to write a line that starts so."""
        return waiting.wait_for(
            lambda: next((line for line in self.report() if line.startswith(start)), ""),
            seconds=START_SECONDS,
            what=f"the flow reports {start!r}",
        )

    def _started(self, infrastructure_pid: str) -> None:
        self.infrastructure_pid = infrastructure_pid
        self.parent = psutil.Process(self.pid).ppid()


NewRun = Callable[..., Run]


@pytest.fixture(scope="module")
def servers(
    prefect_server: prefect_servers.PrefectServer, pytestconfig: pytest.Config
) -> Iterator[warm.Servers]:
    """Fork servers for jobs that find the Prefect server."""
    environment = {**warm.plain(), "PREFECT_API_URL": prefect_server.api_url}
    with warm.servers(protocol.ENGINE_MODULE, environment=environment) as kept:
        yield kept


@pytest.fixture(params=["cold", "warm"])
def starts(request: pytest.FixtureRequest) -> starting.Starts:
    """How jobs are started."""
    if request.param == "cold":
        return starting.Starts()
    servers: warm.Servers = request.getfixturevalue("servers")
    return servers.starts()


@pytest.fixture
def new_run(
    starts: starting.Starts,
    prefect_server: prefect_servers.PrefectServer,
    prefect_client: clients.PrefectClient,
    tmp_path: Path,
) -> NewRun:
    request = prefect_client.transport.request

    def create(
        flow: str,
        file: str = "sample_flows.py",
        env: Mapping[str, str] = MappingProxyType({}),
        **variables: Any,
    ) -> Run:
        unique = f"{flow}-{uuid.uuid4().hex[:8]}"
        flow_id = request("POST", "/flows/", json={"name": unique})["id"]
        deployment = {
            "name": unique,
            "flow_id": flow_id,
            "path": str(FLOWS),
            "entrypoint": f"{file}:{flow}",
        }
        deployment_id = request("POST", "/deployments/", json=deployment)["id"]
        report = tmp_path / unique
        body = request(
            "POST",
            f"/deployments/{deployment_id}/create_flow_run",
            json={"parameters": {"report": str(report)}},
        )
        flow_run = schemas.FlowRun.model_validate(body)
        prefect_client.set_flow_run_state(flow_run.id, schemas.StateProposal(type=State.PENDING))
        own = {"PREFECT_API_URL": prefect_server.api_url, "TEST_REPORT": str(report), **env}
        configuration = ProcessJobConfiguration(env=dict(own), **variables)
        configuration.prepare_for_flow_run(
            flow_run, prefect_client.read_deployment(uuid.UUID(deployment_id))
        )
        return Run(ProcessExecutor(starts), flow_run, configuration, report)

    return create


@pytest.fixture
def states(prefect_client: clients.PrefectClient) -> Callable[[Run], list[str]]:
    """A run's state history, as the server has it."""

    def read(run: Run) -> list[str]:
        rows = prefect_client.transport.request(
            "GET", "/flow_run_states/", params={"flow_run_id": str(run.flow_run.id)}
        )
        return [row["type"] for row in sorted(rows, key=lambda row: row["timestamp"])]

    return read


@pytest.fixture
def thread() -> Iterator[futures.ThreadPoolExecutor]:
    with futures.ThreadPoolExecutor(max_workers=4) as pool:
        yield pool


def cancelling(client: clients.PrefectClient, run: Run) -> None:
    client.set_flow_run_state(run.flow_run.id, schemas.StateProposal(type=State.CANCELLING))


def is_alive(line: str) -> bool:
    """Whether the process that a report's line ends with still runs."""
    try:
        return psutil.Process(int(line.rsplit(maxsplit=1)[-1])).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_a_flow_completes_in_a_directory_and_session_of_its_own(
    new_run: NewRun, states: Callable[[Run], list[str]]
) -> None:
    run = new_run("completes")

    result = run.execute()

    assert result == base.ExecutorResult(f"{socket.gethostname()}:{run.pid}", 0, State.COMPLETED)
    assert states(run) == ["SCHEDULED", "PENDING", "RUNNING", "COMPLETED"]
    seen = json.loads(run.report()[0])
    assert seen["session"] == seen["pid"] == run.pid
    assert seen["environ"]["PREFECT__FLOW_RUN_ID"] == str(run.flow_run.id)
    assert not Path(seen["cwd"]).exists()


@pytest.mark.parametrize(
    ("flow", "expected"),
    [
        ("raises", (0, State.FAILED, "FAILED")),
        ("exits", (3, None, "RUNNING")),
        ("kills_itself", (-9, None, "RUNNING")),
        ("does_not_exist", (1, None, "PENDING")),
    ],
)
def test_the_result_tells_how_a_flow_ended(
    new_run: NewRun,
    states: Callable[[Run], list[str]],
    flow: str,
    expected: tuple[int, schemas.StateType | None, str],
) -> None:
    run = new_run(flow)

    result = run.execute()

    assert (result.status_code, result.reported_state, states(run)[-1]) == expected


@pytest.mark.parametrize("flow", ["waits", "waits_async", "waits_with_children"])
def test_a_running_flow_is_cancelled_by_its_engine_with_its_hooks(
    new_run: NewRun,
    states: Callable[[Run], list[str]],
    prefect_client: clients.PrefectClient,
    thread: futures.ThreadPoolExecutor,
    flow: str,
) -> None:
    run = new_run(flow)
    ending = thread.submit(run.execute)
    run.wait_for("running")
    escapees = [run.wait_for("escapee")] if flow == "waits_with_children" else []
    cancelling(prefect_client, run)

    run.stop()

    assert ending.result(KILL_SECONDS).status_code == 0
    assert states(run)[-1] == "CANCELLED"
    assert "CRASHED" not in states(run)
    assert [line for line in run.report() if line.startswith("on_")] == ["on_cancellation"]
    assert not [line for line in escapees if is_alive(line)]


@pytest.mark.parametrize("starts", ["cold"], indirect=True)
def test_a_wrapped_engine_is_cancelled_although_its_wrapper_passes_nothing_on(
    new_run: NewRun,
    states: Callable[[Run], list[str]],
    prefect_client: clients.PrefectClient,
    thread: futures.ThreadPoolExecutor,
) -> None:
    script = f"trap '' TERM; {shlex.quote(sys.executable)} -m prefect.engine; exit $?"
    run = new_run("waits", command=shlex.join(["sh", "-c", script]))
    ending = thread.submit(run.execute)
    run.wait_for("running")
    cancelling(prefect_client, run)

    run.stop()

    assert ending.result(KILL_SECONDS).status_code == 0
    assert states(run)[-1] == "CANCELLED"
    assert run.report()[-1] == "on_cancellation"


def test_a_stop_during_start_up_kills_at_once_and_reports_nothing(
    new_run: NewRun,
    states: Callable[[Run], list[str]],
    thread: futures.ThreadPoolExecutor,
) -> None:
    run = new_run("never", file="slow_start.py")
    ending = thread.submit(run.execute)
    run.wait_for("importing")

    run.stop(grace_seconds=START_SECONDS)

    assert ending.result(KILL_SECONDS).status_code == -signal.SIGKILL
    assert states(run) == ["SCHEDULED", "PENDING"]


@pytest.mark.parametrize("flow", ["ignores_everything", "takes_sigterm_away"])
def test_a_flow_that_refuses_to_end_is_killed_to_the_last_descendant(
    new_run: NewRun,
    states: Callable[[Run], list[str]],
    thread: futures.ThreadPoolExecutor,
    flow: str,
) -> None:
    run = new_run(flow)
    ending = thread.submit(run.execute)
    lines = [run.wait_for("running")]
    if flow == "ignores_everything":
        lines.append(run.wait_for("escapee"))

    run.stop(STUBBORN_GRACE_SECONDS)

    assert ending.result(KILL_SECONDS).status_code == -signal.SIGKILL
    assert not [line for line in lines if is_alive(line)]
    assert "CRASHED" not in states(run)


def test_stops_from_several_threads_at_once_are_one_stop(
    new_run: NewRun,
    states: Callable[[Run], list[str]],
    thread: futures.ThreadPoolExecutor,
) -> None:
    run = new_run("waits")
    ending = thread.submit(run.execute)
    run.wait_for("running")
    together = threading.Barrier(3)

    def stop() -> None:
        together.wait()
        run.stop()

    for stopping in [thread.submit(stop) for _ in range(3)]:
        stopping.result(GRACE_SECONDS)

    assert ending.result(KILL_SECONDS).status_code == 0
    assert states(run).count("CANCELLED") == 1
    assert run.report().count("on_cancellation") == 1


@pytest.mark.parametrize("starts", ["cold"], indirect=True)  # warm: see test_process_warm.py
def test_the_engine_dies_with_its_launcher(new_run: NewRun, tmp_path: Path) -> None:
    run = new_run("waits")
    environment = tmp_path / "environment.json"
    environment.write_text(run.configuration.model_dump_json(include={"env", "command"}))
    launcher = subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(environment)],
        env={**os.environ, "TMPDIR": str(tmp_path)},  # it cannot tidy up
    )
    try:
        line = run.wait_for("running")
    finally:
        launcher.kill()
        launcher.wait()

    waiting.wait_for(lambda: not is_alive(line), seconds=KILL_SECONDS, what="the engine is gone")


LAUNCHER = """
import sys
from pathlib import Path
from executors.process import ProcessExecutor, ProcessJobConfiguration

configuration = ProcessJobConfiguration.model_validate_json(Path(sys.argv[1]).read_text())
ProcessExecutor().run(None, configuration, print)
"""


def test_another_executor_kills_a_job_by_its_pid(
    new_run: NewRun,
    states: Callable[[Run], list[str]],
    thread: futures.ThreadPoolExecutor,
) -> None:
    run = new_run("waits")
    ending = thread.submit(run.execute)
    run.wait_for("running")
    assert run.infrastructure_pid is not None

    ProcessExecutor().kill_infrastructure(run.infrastructure_pid, run.configuration)

    assert ending.result(KILL_SECONDS).status_code == -signal.SIGKILL
    assert states(run)[-1] == "RUNNING"


# Warm against cold


@pytest.fixture
def each_way(
    request: pytest.FixtureRequest, servers: warm.Servers, new_run: NewRun
) -> Callable[..., dict[str, Run]]:
    """Makes two runs of a flow, one to be started cold and one warm."""

    def create(*args: Any, **variables: Any) -> dict[str, Run]:
        runs = {how: new_run(*args, **variables) for how in ("cold", "warm")}
        runs["cold"].executor = ProcessExecutor()
        runs["warm"].executor = ProcessExecutor(servers.starts())
        return runs

    return create


@pytest.mark.parametrize("starts", ["cold"], indirect=True)
@pytest.mark.parametrize(
    "env", [{}, {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_RESULTS_PERSIST_BY_DEFAULT": "true"}]
)
def test_a_warm_flow_finds_what_a_cold_one_finds(
    each_way: Callable[..., dict[str, Run]], servers: warm.Servers, env: dict[str, str]
) -> None:
    runs = each_way("dumps", "warm_flows.py", env=env)
    seen: dict[str, Any] = {}
    unique: dict[str, Any] = {}
    for how, run in runs.items():
        assert run.execute().reported_state is State.COMPLETED
        seen[how], unique[how] = json.loads("".join(run.report()))
        for name in CHANGES_WITH_EACH_RUN:
            assert seen[how]["environ"].pop(name)
        assert seen[how]["path"][0] == unique[how]["cwd"]
        seen[how]["path"] = [each for each in seen[how]["path"] if each != unique[how]["cwd"]]
        seen[how]["modules"] = set(seen[how]["modules"])

    assert unique["warm"]["parent"] in servers.nursery.pids()
    assert unique["warm"]["random"] != unique["cold"]["random"]
    # A warm job has more modules imported, and none the less.
    assert seen["cold"].pop("modules") - seen["warm"].pop("modules") == set()
    assert seen["warm"] == seen["cold"]


CHANGES_WITH_EACH_RUN = (
    "DISPATCHER_JOB_ID",
    "PREFECT__FLOW_RUN_ID",
    "PREFECT__FLOW_ID",
    "PREFECT__DEPLOYMENT_ID",
    "PREFECT__DEPLOYMENT_NAME",
    "TEST_REPORT",
)


def test_tasks_run_in_threads(new_run: NewRun, states: Callable[[Run], list[str]]) -> None:
    run = new_run("maps_tasks", "warm_flows.py")

    assert run.execute().reported_state is State.COMPLETED
    assert json.loads("".join(run.report())) == [0, 2, 4, 6, 8]


def test_a_cancelled_flows_forks_are_found_in_a_session_of_their_own(
    new_run: NewRun,
    prefect_client: clients.PrefectClient,
    thread: futures.ThreadPoolExecutor,
) -> None:
    run = new_run("forks_away", "warm_flows.py")
    ending = thread.submit(run.execute)
    lines = [run.wait_for("running"), run.wait_for("escapee")]
    cancelling(prefect_client, run)

    run.stop()

    assert ending.result(KILL_SECONDS).status_code == 0
    assert not [line for line in lines if is_alive(line)]


@pytest.mark.parametrize("starts", ["warm"], indirect=True)
def test_another_executor_kills_a_warm_jobs_forks_by_its_pid(
    new_run: NewRun, servers: warm.Servers, thread: futures.ThreadPoolExecutor
) -> None:
    run = new_run("forks_away", "warm_flows.py")
    ending = thread.submit(run.execute)
    lines = [run.wait_for("running"), run.wait_for("escapee")]
    assert run.parent in servers.nursery.pids()
    assert run.infrastructure_pid is not None

    ProcessExecutor().kill_infrastructure(run.infrastructure_pid, run.configuration)

    assert ending.result(KILL_SECONDS).status_code == -signal.SIGKILL
    assert not [line for line in lines if is_alive(line)]
    assert psutil.pid_exists(run.parent)


@pytest.mark.parametrize("starts", ["warm"], indirect=True)
def test_a_warm_flow_whose_fork_server_dies_is_killed_and_not_restarted(
    new_run: NewRun,
    servers: warm.Servers,
    states: Callable[[Run], list[str]],
    thread: futures.ThreadPoolExecutor,
) -> None:
    run = new_run("forks_away", "warm_flows.py")
    ending = thread.submit(run.execute)
    lines = [run.wait_for("running"), run.wait_for("escapee")]

    os.kill(run.parent, signal.SIGKILL)

    assert ending.result(KILL_SECONDS).status_code == -signal.SIGKILL
    assert not [line for line in lines if is_alive(line)]
    assert states(run)[-1] == "RUNNING"
    servers.wait_until_ready(but=run.parent)
