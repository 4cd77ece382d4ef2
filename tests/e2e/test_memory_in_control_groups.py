"""Memory limits that the kernel keeps, in a virtual machine that has the control groups for it."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

import pytest

from tests.e2e.control_groups import machine

HERE = Path(__file__).parent
PROJECT = HERE.parents[1]

pytestmark = pytest.mark.skipif(machine.missing() is not None, reason=str(machine.missing()))


def test_the_kernel_holds_jobs_to_their_memory_limit_where_it_may(tmp_path: Path) -> None:
    tests = HERE / "control_groups" / "in_machine.py"
    command = shlex.join(
        [
            *(sys.executable, "-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider"),
            *("-p", "no:xdist", "-p", "no:celery", "--override-ini", "addopts=", str(tests)),
        ]
    )

    status, output = machine.run(
        f"cd {shlex.quote(str(PROJECT))} && PATH=/usr/bin:/bin HOME=/root {command}", tmp_path
    )

    assert status == 0, output[-6000:]
    assert " passed" in output
