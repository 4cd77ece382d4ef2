"""Pool children whose worker is gone, with real processes."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import psutil

from dispatcher import parents
from tests import waiting

SECONDS = 20.0

# A worker with one child, which is busy as long as a file exists.
WORKER = """
import os, sys, time
from pathlib import Path
from dispatcher import parents

busy, when = Path(sys.argv[1]), sys.argv[2]

def is_busy():
    print("looked", flush=True)
    return busy.exists()

watch = parents.WorkerWatch(is_busy)
watch.note_worker()
worker = os.getpid()
if os.fork() == 0:
    if when == "late":
        print(os.getpid(), flush=True)
        while os.getppid() == worker:
            time.sleep(0.01)
    watch.begin()
    if when == "early":
        print(os.getpid(), flush=True)
time.sleep(100)
"""


@contextmanager
def child_of_killed_worker(busy: Path, when: str) -> Iterator[tuple[psutil.Process, IO[str]]]:
    command = [sys.executable, "-c", WORKER, str(busy), when]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        child = psutil.Process(int(worker.stdout.readline()))
        try:
            assert child.ppid() == worker.pid
            worker.kill()
            worker.wait()
            yield child, worker.stdout
        finally:
            if child.is_running():
                child.kill()


def is_over(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_an_idle_child_ends_with_its_worker(tmp_path: Path) -> None:
    with child_of_killed_worker(tmp_path / "busy", "early") as (child, _):
        waiting.wait_for(lambda: is_over(child), seconds=SECONDS, what="the child ends")


def test_a_child_that_comes_to_life_without_its_worker_ends_at_once(tmp_path: Path) -> None:
    with child_of_killed_worker(tmp_path / "busy", "late") as (child, _):
        waiting.wait_for(lambda: is_over(child), seconds=SECONDS, what="the child ends")


def test_a_busy_child_first_does_what_it_is_at(tmp_path: Path) -> None:
    busy = tmp_path / "busy"
    busy.touch()
    with child_of_killed_worker(busy, "early") as (child, output):
        assert [output.readline() for _ in range(3)] == ["looked\n"] * 3
        assert not is_over(child)
        busy.unlink()
        waiting.wait_for(lambda: is_over(child), seconds=SECONDS, what="the child ends")


def test_a_worker_that_is_its_own_pool_does_not_watch_itself() -> None:
    before = threading.enumerate()
    watch = parents.WorkerWatch(is_busy=lambda: False)
    watch.note_worker()
    watch.begin()
    assert threading.enumerate() == before
