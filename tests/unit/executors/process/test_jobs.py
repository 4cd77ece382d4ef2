from __future__ import annotations

import subprocess
import threading
from pathlib import Path
from typing import IO

import pytest

from executors import errors
from executors.process import jobs
from executors.process import launch as launching
from executors.process.engine_control import control


class Immortal:
    """A process that SIGKILL does not end, as one that hangs in the kernel."""

    lost = False

    output: IO[bytes] | None = None

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.released = threading.Event()

    def wait(self) -> int:
        self.released.wait()
        return 0

    def reap(self) -> None:
        """There is nothing to do."""


def test_a_job_that_survives_being_killed_is_an_error() -> None:
    launch = launching.Launch(job_id="0", argv=("true",), directory=Path("/"), environment={})
    with subprocess.Popen(["sleep", "300"], start_new_session=True) as stand_in:
        process = Immortal(stand_in.pid)
        with control.ControlSocket() as connection:
            job = jobs.Job(launch, process, connection, kill_seconds=0.2)
            waiting = threading.Thread(target=job.wait)
            waiting.start()

            with pytest.raises(errors.ExecutorError, match="after SIGKILL"):
                job.stop(0)

            process.released.set()
            waiting.join()
