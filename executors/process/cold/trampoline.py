"""The first program of a job's process: it sets the process right, then becomes the command.

Run by path as ``python -I -S trampoline.py <launcher's pid> <control group> <command>
<arguments…>``; the process id stays the same. A ``preexec_fn`` could do this too, but would run
Python code between fork and exec, which may deadlock in a launcher that has threads. Standard
library only: nothing else is on the path here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

OOM_SCORE = "/proc/self/oom_score_adj"
FIRST_VICTIM = "1000"

# As a shell has it.
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_LAUNCHER_GONE = 128 + signal.SIGKILL


def main(arguments: list[str]) -> None:
    """Become the command; returns never."""
    launcher_pid, cgroup, command = int(arguments[0]), arguments[1], arguments[2:]
    die_with(launcher_pid)
    settle(cgroup)
    reset_signals()
    try:
        os.execvp(command[0], command)  # noqa: S606 - no shell is wanted
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        missing = isinstance(error, FileNotFoundError)
        os._exit(EXIT_NOT_FOUND if missing else EXIT_NOT_EXECUTABLE)


def die_with(launcher_pid: int) -> None:
    """Have the kernel kill this process as soon as its launcher is dead (Linux only)."""
    if not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    # A launcher that died before the call above can no longer send anything.
    if os.getppid() != launcher_pid:
        os._exit(EXIT_LAUNCHER_GONE)


def settle(cgroup: str) -> None:
    """Join a control group, if there is one, and be the first that the kernel kills (Linux only).

    When memory is short, a flow is to go rather than the worker. Going up needs no privileges.
    """
    if not sys.platform.startswith("linux"):
        return
    try:  # noqa: SIM105 - contextlib takes milliseconds to import
        write(OOM_SCORE, FIRST_VICTIM)
    except OSError:
        pass
    if cgroup:
        try:
            write(f"{cgroup}/cgroup.procs", "0")
        except OSError as error:
            sys.stderr.write(f"The control group {cgroup} cannot be joined: {error.strerror}\n")
            sys.stderr.flush()
            os._exit(EXIT_NOT_EXECUTABLE)


def write(path: str, text: str) -> None:
    """Write to a file of the kernel's."""
    with open(path, "w") as file:  # noqa: PTH123 - pathlib takes milliseconds to import
        file.write(text)


def reset_signals() -> None:
    """Undo what was inherited: ignored signals (Celery's SIGINT, Python's SIGPIPE) and the mask."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


if __name__ == "__main__":
    main(sys.argv[1:])
