"""Pool children whose worker is gone, with real processes."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from dispatcher.celery_app import die_with_parent
from tests import waiting

SECONDS = 20.0

# A worker with one child, which is tied to it when it is told to be.
WORKER = """
import os, sys, time
from dispatcher.celery_app import die_with_parent

worker = os.getpid()
if os.fork() == 0:
    print(os.getpid(), flush=True)
    if sys.argv[1] == "orphaned":
        while os.getppid() == worker:
            time.sleep(0.01)
    die_with_parent.end_if_orphaned(worker)
    print("goes on", flush=True)
    os._exit(0)
die_with_parent.end_if_orphaned(worker)
time.sleep(100)
"""


@pytest.mark.parametrize(("is_orphaned", "says"), [(True, ""), (False, "goes on\n")])
def test_a_child_ends_if_its_worker_was_killed_while_it_started(
    *, is_orphaned: bool, says: str
) -> None:
    command = [sys.executable, "-c", WORKER, "orphaned" if is_orphaned else ""]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        child = psutil.Process(int(worker.stdout.readline()))
        if is_orphaned:
            worker.kill()
        assert worker.stdout.readline() == says
        waiting.wait_for(
            lambda: not child.is_running() or child.status() == psutil.STATUS_ZOMBIE,
            seconds=SECONDS,
            what="the child ends",
        )
        worker.kill()


def test_a_worker_that_is_its_own_pool_is_no_orphan() -> None:
    die_with_parent.end_if_orphaned(psutil.Process().pid)
