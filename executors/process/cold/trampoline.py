"""The first program of a job's process: it sets the process right, then becomes the command.

Run by path as ``python -I -S trampoline.py <launcher's pid> <command> <arguments…>``; the process
id stays the same. A ``preexec_fn`` could do this too, but would run Python code between fork and
exec, which may deadlock in a launcher that has threads. Standard library only: nothing else is on
the path here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

# As a shell has it.
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
EXIT_LAUNCHER_GONE = 128 + signal.SIGKILL


def main(arguments: list[str]) -> None:
    """Become the command; returns never."""
    launcher_pid, command = int(arguments[0]), arguments[1:]
    die_with(launcher_pid)
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


def reset_signals() -> None:
    """Undo what was inherited: ignored signals (Celery's SIGINT, Python's SIGPIPE) and the mask."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


if __name__ == "__main__":
    main(sys.argv[1:])
