"""Killing all processes of a job."""

from __future__ import annotations

import os
import signal
import subprocess
import uuid

import psutil

from executors.process.cleanup import process_tree

MARK = "TEST_FAMILY"


def test_who_was_frozen_for_all_of_its_time_kills_nevertheless() -> None:
    value = uuid.uuid4().hex
    environment = {"PATH": os.environ["PATH"], MARK: value}
    with subprocess.Popen(["sleep", "300"], env=environment) as member:
        family = process_tree.Family(process_tree.with_variable(MARK, value))
        family.remember([psutil.Process(member.pid)])

        assert family.kill(timeout_seconds=0.0) == []

        assert member.wait() == -signal.SIGKILL
