"""Cold start: the job is a new program in a session of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from executors import errors
from executors.process import launch as launching

TRAMPOLINE = Path(__file__).with_name("trampoline.py")


class ColdProcess:
    """A started program. Whoever waits for it must reap it, once."""

    lost = False

    def __init__(self, popen: subprocess.Popen[bytes]) -> None:
        self.pid = popen.pid
        self.output = popen.stdout
        self._popen = popen

    def wait(self) -> int:
        """Wait for the end and return the exit status, negative for a signal.

        The process stays a zombie, so that its pid and group still mean this job.
        """
        if not hasattr(os, "waitid"):  # macOS before Python 3.13
            return self._popen.wait()
        ended = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # only WNOHANG may find nothing
        return ended.si_status if ended.si_code == os.CLD_EXITED else -ended.si_status

    def reap(self) -> None:
        """Give the pid back to the system."""
        self._popen.wait()


def start(launch: launching.Launch) -> ColdProcess:
    """Start the job's command. Raises LaunchError.

    The process has its own session, a clean signal state, no input and no descriptors but 1 and
    2; on Linux it is killed with the thread that calls this, which therefore must outlive it.
    """
    launching.check_startable(launch)
    output = None if launch.stream_output else subprocess.DEVNULL
    if launch.captures_output:
        output = subprocess.PIPE
    try:
        popen = subprocess.Popen(
            [
                *(sys.executable, "-I", "-S", str(TRAMPOLINE)),
                str(os.getpid()),
                str(launch.cgroup or ""),
                *launch.argv,
            ],
            cwd=launch.directory,
            env=launch.environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT if launch.captures_output else output,
            start_new_session=True,
        )
    except (OSError, ValueError) as error:
        raise errors.LaunchError(
            f"The job's command {launch.argv[0]!r} could not be started: {reason_of(error)}."
        ) from None
    return ColdProcess(popen)


def reason_of(error: OSError | ValueError) -> str:
    """The system's words, without the arguments or values that they may quote."""
    if isinstance(error, OSError):
        return error.strerror or type(error).__name__
    return "a null byte or '=' in a name of its environment or in its arguments"
