"""Holds one process of the stack on a line: whatever happens, nothing of it stays behind.

Runs as a script between the supervisor and the process (``tether.py SUPERVISOR-PID COMMAND…``) and
imports nothing but the standard library, since there is one of it per process. Signals are passed
on and the exit code is handed back, as a container's init does. In addition it ends every
descendant, also those in sessions of their own,

* once the process itself is gone, and
* at once, when the supervisor dies (even by SIGKILL) or sends SIGUSR1.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import time
from pathlib import Path

KILL_SIGNAL = signal.SIGUSR1
FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT)
HANDLED = {KILL_SIGNAL, signal.SIGCHLD, *FORWARDED}

KILL_SECONDS = 5.0  # a process in uninterruptible sleep must not hold the tether for ever
KILL_PAUSE_SECONDS = 0.01

PR_SET_PDEATHSIG = 1  # linux/prctl.h
PR_SET_CHILD_SUBREAPER = 36


def main(arguments: list[str]) -> int:
    """Run the command until it ends and return its exit code as a shell would."""
    supervisor, command = int(arguments[0]), arguments[1:]
    signal.pthread_sigmask(signal.SIG_BLOCK, HANDLED)
    control_process(PR_SET_CHILD_SUBREAPER, 1)
    control_process(PR_SET_PDEATHSIG, KILL_SIGNAL)
    if os.getppid() != supervisor:  # it died before the line above
        return 1
    child = os.fork()
    if child == 0:
        become(command)
    code = hold(child)
    kill_descendants()
    return code


def control_process(option: int, value: int) -> None:
    """Call prctl(2).

    Raises OSError when the kernel refuses.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def become(command: list[str]) -> None:
    """Turn the forked child into the command."""
    control_process(PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
    try:
        os.execvp(command[0], command)  # noqa: S606
    except OSError as error:
        sys.stderr.write(f"{command[0]}: {error.strerror}\n")
        sys.stderr.flush()
        os._exit(127)


def hold(child: int) -> int:
    """Pass signals on until the child is gone, or must go."""
    while True:
        received = signal.sigwait(HANDLED)
        if received == KILL_SIGNAL:
            return 128 + signal.SIGKILL
        if received != signal.SIGCHLD:
            os.kill(child, received)
            continue
        code = reap(child)
        if code is not None:
            return code


def reap(child: int) -> int | None:
    """Collect ended processes, adopted ones too, and return the child's exit code if it is one."""
    code = None
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return code
        if pid == 0:
            return code
        if pid == child:
            returned = os.waitstatus_to_exitcode(status)
            code = returned if returned >= 0 else 128 - returned


def kill_descendants() -> None:
    """Kill children until there are none; the orphans of a killed one become our children."""
    deadline = time.monotonic() + KILL_SECONDS
    while children := child_pids():
        for pid in children:
            os.kill(pid, signal.SIGKILL)
        reap(-1)
        if time.monotonic() > deadline:
            return
        time.sleep(KILL_PAUSE_SECONDS)


def child_pids() -> list[int]:
    """Return the pids whose parent is this process, ended but uncollected ones included."""
    own = str(os.getpid())
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        parent = stat.rpartition(")")[2].split()[1]  # the name before it may contain anything
        if parent == own:
            found.append(int(entry.name))
    return found


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
