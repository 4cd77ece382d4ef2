"""Which jobs have lost their worker, and what is killed of them."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from concurrent import futures
from multiprocessing import process as processes
from pathlib import Path
from typing import Any

import pytest

from executors.process.cleanup import job_marks, job_records
from tests import waiting

SECONDS = 20.0

Start = Callable[[str], subprocess.Popen[bytes]]


@pytest.fixture
def records(tmp_path: Path) -> job_records.JobRecords:
    return job_records.JobRecords(tmp_path / "jobs")


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts what a job has moved to a session of its own."""
    started: list[subprocess.Popen[bytes]] = []

    def begin(job_id: str) -> subprocess.Popen[bytes]:
        environment = {"PATH": os.environ["PATH"], job_marks.JOB_ID_VARIABLE: job_id}
        command = ["sleep", "300"]
        started.append(subprocess.Popen(command, env=environment, start_new_session=True))
        return started[-1]

    yield begin
    for process in started:
        process.kill()
        process.wait()


def hold(directory: Path, job_id: str, held: Any) -> None:
    """Be a worker's process that executes a job for ever."""
    with job_records.JobRecords(directory).recorded(job_id):
        held.set()
        while True:
            held.wait(SECONDS)


def worker_with(directory: Path, job_id: str) -> processes.BaseProcess:
    """Start such a process."""
    spawn = multiprocessing.get_context("spawn")
    held = spawn.Event()
    worker = spawn.Process(target=hold, args=(directory, job_id, held))
    worker.start()
    assert held.wait(SECONDS)
    return worker


def test_what_is_left_of_a_job_is_killed_once_its_worker_is_dead(
    records: job_records.JobRecords, tmp_path: Path, start: Start
) -> None:
    lost, other = uuid.uuid4().hex, uuid.uuid4().hex
    escaped, alive = start(lost), start(other)
    worker = worker_with(tmp_path / "jobs", lost)
    assert records.sweep() == 0
    assert escaped.poll() is None

    worker.kill()
    worker.join()

    assert records.sweep() == 1
    assert escaped.wait(SECONDS) == -9
    assert alive.poll() is None
    assert records.sweep() == 0


def test_a_job_that_has_ended_may_leave_something_behind(
    records: job_records.JobRecords, start: Start
) -> None:
    job_id = uuid.uuid4().hex
    with records.recorded(job_id):
        left = start(job_id)
        assert records.sweep() == 0  # also one and the same process is told apart
    assert records.sweep() == 0
    assert left.poll() is None


def test_the_last_job_takes_the_directory_with_it_and_no_other_job_goes_unrecorded(
    records: job_records.JobRecords, tmp_path: Path
) -> None:
    def record_many(count: int) -> list[bool]:
        seen = []
        for _ in range(count):
            job_id = uuid.uuid4().hex
            with records.recorded(job_id):
                seen.append(bool(list((tmp_path / "jobs").glob(f"*-{job_id}"))))
        return seen

    with futures.ThreadPoolExecutor(4) as pool:
        seen = [each for many in pool.map(record_many, [100] * 4) for each in many]

    assert len(seen) == 400
    assert all(seen)
    assert not (tmp_path / "jobs").exists()


def test_a_thread_sweeps_again_and_again(
    records: job_records.JobRecords, tmp_path: Path, start: Start
) -> None:
    job_id = uuid.uuid4().hex
    worker = worker_with(tmp_path / "jobs", job_id)
    with job_records.sweeping(records, every_seconds=0.05):
        escaped = start(job_id)
        worker.kill()
        worker.join()
        assert escaped.wait(SECONDS) == -9


@pytest.mark.parametrize(("is_file", "user"), [(True, None), (False, 12345)])
def test_a_run_does_without_a_record_that_cannot_be_written(
    tmp_path: Path, is_file: bool, user: int | None
) -> None:
    directory = tmp_path / "jobs"
    if is_file:
        directory.touch()
    done = []
    with job_records.JobRecords(directory, user).recorded(uuid.uuid4().hex):
        done.append("job")
    assert done == ["job"]
    assert not directory.is_dir() or not list(directory.iterdir())


def test_a_process_table_has_one_name_for_all_who_see_it() -> None:
    code = "from executors.process.cleanup import job_records; print(job_records.namespace())"
    seen = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert seen.stdout.strip() == job_records.namespace()


def test_a_sweep_that_fails_harms_nobody(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(job_records.JobRecords):
        def sweep(self) -> int:
            raise ValueError("a fault of ours")

    with job_records.sweeping(Broken(tmp_path), every_seconds=0.01):
        waiting.wait_for(lambda: len(caplog.records) > 1, seconds=SECONDS, what="two failures")
    assert "looking for jobs that lost their worker failed" in caplog.text
