"""Jobs with a memory limit that are watched, and what is known of all jobs' memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from concurrent import futures
from pathlib import Path

import psutil
import pytest

from executors import base
from executors.process import ProcessExecutor
from executors.process.memory import cgroups, oom_scores, usage, watching
from tests import memory_jobs, waiting, warm

SECONDS = 30.0
LONG_SECONDS = 10 * SECONDS
MIB = memory_jobs.MIB

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="memory is measured on Linux")


@pytest.fixture(scope="module")
def servers() -> Iterator[warm.Servers]:
    with warm.servers() as kept:
        yield kept


@pytest.fixture(params=["cold", "warm"])
def executor(request: pytest.FixtureRequest) -> ProcessExecutor:
    return warm.executor_for(request)


def run(executor: ProcessExecutor, command: str, limit: str | None) -> base.ExecutorResult:
    configuration = memory_jobs.configuration(command, limit)
    return executor.run(memory_jobs.FLOW_RUN, configuration, lambda _: None)


def test_a_job_that_uses_more_than_it_may_is_killed_and_told_limit_and_peak(
    executor: ProcessExecutor,
) -> None:
    result = run(executor, memory_jobs.take(200, seconds=LONG_SECONDS), "64MiB")

    assert result.status_code == -9
    assert "its limit is 64.0 MiB" in str(result.explanation)
    peak = float(str(result.explanation).partition("peak was ")[2].partition(" MiB")[0])
    assert 64 < peak < 260


def test_all_processes_of_a_job_count_together(executor: ProcessExecutor) -> None:
    result = run(executor, memory_jobs.take(40, processes=4, seconds=LONG_SECONDS), "100MiB")

    assert result.status_code == -9
    assert "its limit is 100.0 MiB" in str(result.explanation)


def test_a_process_that_has_left_its_job_counts_as_well() -> None:
    command = memory_jobs.take(150, seconds=LONG_SECONDS, elsewhere=True)

    result = run(ProcessExecutor(), command, "100MiB")

    assert result.status_code == -9
    assert "its limit is 100.0 MiB" in str(result.explanation)


def test_what_processes_share_counts_once(executor: ProcessExecutor) -> None:
    # Four processes with the same 60 MiB, which none of them writes to.
    program = (
        "import os, time; taken = b'1' * (60 * 2**20)\n"
        "for _ in range(3):\n"
        "    if not os.fork(): break\n"
        "time.sleep(1.5)"
    )
    result = run(executor, f"{sys.executable} -S -c {program!r}".replace("\\n", "\n"), "200MiB")

    assert (result.status_code, result.explanation) == (0, None)


def test_a_job_within_its_limit_ends_as_it_wants(executor: ProcessExecutor) -> None:
    result = run(executor, memory_jobs.take(40, seconds=1), "200MiB")

    assert (result.status_code, result.explanation) == (0, None)


def test_one_that_goes_over_its_limit_is_killed_alone(executor: ProcessExecutor) -> None:
    with futures.ThreadPoolExecutor() as pool:
        modest = [
            pool.submit(run, executor, memory_jobs.take(30, seconds=4), "200MiB") for _ in range(3)
        ]
        greedy = pool.submit(run, executor, memory_jobs.take(400, seconds=LONG_SECONDS), "200MiB")

        assert greedy.result(SECONDS).status_code == -9
        assert [each.result(SECONDS).status_code for each in modest] == [0, 0, 0]


def test_a_job_is_the_first_that_the_kernel_kills(
    executor: ProcessExecutor, tmp_path: Path
) -> None:
    score = tmp_path / "score"

    run(executor, f"sh -c 'cat /proc/self/oom_score_adj > {score}'", None)

    assert score.read_text() == "1000\n"


def test_only_who_wants_nothing_else_is_made_the_last_that_the_kernel_kills() -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from executors.process.memory import oom_scores\n"
        "oom_scores.OOM_SCORE.write_text(sys.argv[1]); oom_scores.be_last()\n"
        "print(oom_scores.OOM_SCORE.read_text())"
    )

    def after(wish: int) -> int:
        told = psutil.Popen(
            [sys.executable, "-c", program, str(wish)], stdout=-1, stderr=-1, text=True
        )
        return int(told.communicate(timeout=SECONDS)[0])

    may_go_down = after(0) == oom_scores.LAST
    assert may_go_down or after(0) == 0
    assert after(500) == (oom_scores.LAST if may_go_down else 500)
    if may_go_down:
        assert after(-200) == -200


def test_what_a_job_uses_is_measured_now_and_then(tmp_path: Path) -> None:
    go = tmp_path / "go"
    job = psutil.Popen(
        [sys.executable, "-c", f"x = bytearray(80 * 2**20); open({str(go)!r}, 'w'); input()"],
        stdin=-1,
    )
    with job, watching.Watch(None, lambda: [job], job.kill, measure_seconds=0.05) as watch:
        waiting.wait_for(go.exists, seconds=SECONDS, what="the job has its memory")
        waiting.wait_for(
            lambda: (watch.used or 0) >= 80 * MIB, seconds=SECONDS, what="that is measured"
        )
        assert job.is_running()
        job.kill()


def test_descendants_are_found_without_a_look_at_all_processes(tmp_path: Path) -> None:
    ready = tmp_path / "ready"
    script = f"sleep 300 & sh -c 'sleep 300 & echo > {ready}; wait'"
    with psutil.Popen(["sh", "-c", script]) as family:
        waiting.wait_for(ready.exists, seconds=SECONDS, what="all have begun")
        found = usage.descendants(family.pid)
        assert {each.pid for each in found} == {
            each.pid for each in family.children(recursive=True)
        }
        assert len(found) == 3
        for each in [*found, family]:
            each.kill()


# Where the groups are


@pytest.mark.parametrize(
    ("own", "mount", "expected"),
    [
        ("/system.slice/dispatcher.service", "/ {here}", "system.slice/dispatcher.service"),
        ("/", "/ {here}", ""),
        ("/docker/abc/x", "/docker/abc {here}", "x"),
    ],
)
def test_the_own_control_group_is_found(
    tmp_path: Path, own: str, mount: str, expected: str
) -> None:
    (tmp_path / "cgroup").write_text(f"4:memory:/elsewhere\n0::{own}\n")
    (tmp_path / "mountinfo").write_text(
        "24 1 0:22 / /proc rw - proc proc rw\n"
        f"30 23 0:26 {mount.format(here=tmp_path)} rw,nosuid shared:4 - cgroup2 cgroup2 rw\n"
    )

    assert cgroups.find_own(tmp_path) == tmp_path / expected


@pytest.mark.parametrize("lines", ["4:memory:/x\n", "0::/x\n", ""])
def test_without_the_second_version_of_control_groups_there_is_none(
    tmp_path: Path, lines: str
) -> None:
    (tmp_path / "cgroup").write_text(lines)
    (tmp_path / "mountinfo").write_text(
        "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw\n"
    )

    with pytest.raises(cgroups.NoCgroupError):
        cgroups.find_own(tmp_path)


def test_a_group_that_was_not_given_to_the_worker_is_left_alone(tmp_path: Path) -> None:
    own = tmp_path / "user.slice" / "session"
    own.mkdir(parents=True)
    for group in (tmp_path, own.parent, own):
        (group / "cgroup.procs").write_text("")

    with pytest.raises(cgroups.NoCgroupError, match="not delegated"):
        cgroups.prepare(own)
