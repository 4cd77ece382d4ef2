"""What is tested in the machine; started by ``test_memory_in_control_groups`` alone."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import pytest

from executors import base
from executors.process import ProcessExecutor
from executors.process.memory import cgroups
from tests import memory_jobs, warm

SECONDS = 60.0
LONG_SECONDS = 10 * SECONDS
ROOT = Path("/sys/fs/cgroup")


@pytest.fixture(scope="module", autouse=True)
def prepared() -> Iterator[None]:
    """As a worker's main process does at its start; here it is root of the machine."""
    with cgroups.prepared():
        assert os.environ[cgroups.BASE_VARIABLE] == str(ROOT)
        yield


@pytest.fixture(scope="module")
def servers() -> Iterator[warm.Servers]:
    with warm.servers() as kept:
        yield kept


@pytest.fixture(params=["cold", "warm"])
def executor(request: pytest.FixtureRequest) -> ProcessExecutor:
    return warm.executor_for(request)


@pytest.fixture(autouse=True)
def no_group_is_left() -> Iterator[None]:
    yield
    assert list(ROOT.glob(f"{cgroups.JOB_PREFIX}*")) == []


def run(executor: ProcessExecutor, command: str, limit: str | None) -> base.ExecutorResult:
    configuration = memory_jobs.configuration(command, limit)
    return executor.run(memory_jobs.FLOW_RUN, configuration, lambda _: None)


def test_a_job_over_its_limit_is_killed_by_the_kernel_and_told_limit_and_peak(
    executor: ProcessExecutor,
) -> None:
    result = run(executor, memory_jobs.take(200, seconds=LONG_SECONDS), "64MiB")

    assert result.status_code == -9
    assert "its limit is 64.0 MiB" in str(result.explanation)
    assert "its peak was 64.0 MiB" in str(result.explanation)  # the kernel gives no byte more


def test_all_processes_of_a_job_count_together_and_end_together(executor: ProcessExecutor) -> None:
    result = run(executor, memory_jobs.take(40, processes=4, seconds=LONG_SECONDS), "100MiB")

    assert result.status_code == -9
    assert "its limit is 100.0 MiB" in str(result.explanation)


def test_a_process_that_has_left_its_job_counts_as_well(executor: ProcessExecutor) -> None:
    command = memory_jobs.take(150, seconds=LONG_SECONDS, elsewhere=True)

    result = run(executor, command, "100MiB")

    assert result.status_code == -9
    assert "its limit is 100.0 MiB" in str(result.explanation)


def test_one_that_goes_over_its_limit_is_killed_alone(executor: ProcessExecutor) -> None:
    with futures.ThreadPoolExecutor() as pool:
        modest = [
            pool.submit(run, executor, memory_jobs.take(20, seconds=4), "100MiB") for _ in range(3)
        ]
        greedy = pool.submit(run, executor, memory_jobs.take(300, seconds=LONG_SECONDS), "100MiB")

        assert greedy.result(SECONDS).status_code == -9
        assert [each.result(SECONDS).status_code for each in modest] == [0, 0, 0]


def test_a_job_that_is_killed_for_another_reason_is_not_told_of_memory(
    executor: ProcessExecutor,
) -> None:
    result = run(executor, "sh -c 'kill -9 $$'", "100MiB")

    assert result.status_code == -9
    assert "limit is" not in str(result.explanation)


def test_a_group_that_systemd_has_delegated_is_divided_into_worker_and_jobs() -> None:
    unit = ROOT / "unit"
    unit.mkdir()
    os.setxattr(unit, "user.delegate", b"1")
    program = (
        "import os\n"
        "from executors.process import ProcessExecutor\n"
        "from executors.process.memory import cgroups\n"
        "from tests import memory_jobs\n"
        "with cgroups.prepared():\n"
        "    print(os.environ.get(cgroups.BASE_VARIABLE), cgroups.find_own())\n"
        f"    job = memory_jobs.configuration({memory_jobs.take(200, seconds=60)!r}, '64MiB')\n"
        "    ended = ProcessExecutor().run(memory_jobs.FLOW_RUN, job, lambda _: None)\n"
        "    print(ended.explanation)\n"
    )

    told = in_group(unit, program).splitlines()

    assert told[0] == f"{unit} {unit / cgroups.WORKER_LEAF}"
    assert "its limit is 64.0 MiB" in told[1]
    # A second worker of the same unit begins in the leaf.
    assert in_group(unit / cgroups.WORKER_LEAF, program).splitlines()[0] == told[0]
    assert list(unit.glob(f"{cgroups.JOB_PREFIX}*")) == []


def test_a_group_that_was_not_delegated_is_left_as_it_is() -> None:
    session = ROOT / "session"
    session.mkdir()
    program = (
        "import os\n"
        "from executors.process.memory import cgroups\n"
        "with cgroups.prepared():\n"
        "    print(os.environ.get(cgroups.BASE_VARIABLE), cgroups.find_own())\n"
    )

    assert in_group(session, program).split() == ["None", str(session)]
    assert [path for path in session.iterdir() if path.is_dir()] == []


def test_what_killed_workers_leave_is_removed_once_it_cannot_be_somebody_elses() -> None:
    left = ROOT / f"{cgroups.JOB_PREFIX}left"
    left.mkdir()

    cgroups.remove_abandoned(ROOT)
    assert left.is_dir()

    cgroups.remove_abandoned(ROOT, now=time.time() + cgroups.ABANDONED_SECONDS + 1)
    assert not left.exists()


def in_group(group: Path, program: str) -> str:
    """Execute a program in a control group, and return what it prints."""
    join = "import sys; open(sys.argv[1], 'w').write('0')\n"
    arguments = ["-c", join + program, str(group / "cgroup.procs")]
    environment = {k: v for k, v in os.environ.items() if k != cgroups.BASE_VARIABLE}
    ended = subprocess.run(
        [sys.executable, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS,
        env=environment,
    )
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
