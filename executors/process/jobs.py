"""One running job: waiting for its end, and bringing it about."""

from __future__ import annotations

import contextlib
import logging
import signal
import threading
import time
from typing import IO, Literal, Protocol

import psutil

from executors import errors
from executors.process import launch as launching
from executors.process.cleanup import process_tree
from executors.process.engine_control import control
from executors.process.memory import memory_hold, usage

# How long after SIGKILL a job may still be there before that is an error.
KILL_SECONDS = process_tree.SWEEP_SECONDS + 5.0
# How often what has left the job's tree is searched for, which reads the table of all processes.
SEARCH_SECONDS = 5.0

logger = logging.getLogger(__name__)


class Process(Protocol):
    """The first process of a job, leader of a session of its own, however it was started."""

    pid: int
    lost: bool
    """Whether it ended only because what had started it died."""
    output: IO[bytes] | None
    """What it prints, if that is captured."""

    def wait(self) -> int:
        """Wait for the end without reaping; the exit status, negative for a signal."""

    def reap(self) -> None:
        """Give the pid of the ended process back to the system."""


Ending = Literal["cancel", "reschedule", "crash"]


class Job:
    """A started job. One thread waits for it; any thread may stop it, any number of times."""

    def __init__(
        self,
        launch: launching.Launch,
        process: Process,
        connection: control.ControlSocket,
        hold: memory_hold.MemoryHold | None = None,
        kill_seconds: float = KILL_SECONDS,
    ) -> None:
        self.pid = process.pid
        self.output = process.output
        self._job_id = launch.job_id
        self._is_engine = launch.is_engine
        self._kills_escaped = launch.kills_escaped
        self._process = process
        self._control = connection
        self._hold = hold or memory_hold.MemoryHold(None, None)
        self._kill_seconds = kill_seconds
        self._family = process_tree.Family(self._is_member())
        self._searched_at = time.monotonic()
        # Held while the pid is used, so that it cannot be given back in between.
        self._lock = threading.Lock()
        self._reaped = False
        self._stop_asked = False
        self._gone = threading.Event()

    def wait(self) -> int:
        """Wait for the job's end, end what it left behind, and return its exit status.

        What is left in the job's session group is always killed, which costs one system call;
        unlike Prefect's own worker, which leaves it running. A flow that is to leave something
        behind must start it outside of its process group. After a stop or a failure, or where the
        run wants that, it does not help: all processes of this machine are searched for the job's.
        """
        status = self._process.wait()
        process_tree.signal_group(self.pid, signal.SIGKILL)
        if status != 0 or self._stop_asked or self._kills_escaped:
            self._sweep()
        with self._lock:
            self._process.reap()
            self._reaped = True
        self._gone.set()
        return status

    @property
    def engine_seen(self) -> bool:
        """Whether an engine has connected, which it does when its flow begins."""
        return self._control.engine_seen

    @property
    def is_to_be_replaced(self) -> bool:
        """Whether the job was lost before its flow began, through no fault or wish of anybody's."""
        return self._process.lost and not self._stop_asked and not self._control.engine_seen

    def members(self) -> list[psutil.Process]:
        """The processes of the job: the first, its descendants, and whom a search has found."""
        with self._lock:
            if self._reaped:
                return []
            tree = [psutil.Process(self.pid), *usage.descendants(self.pid)]
        return list({*tree, *self._family.known()})

    def searched_members(self) -> list[psutil.Process]:
        """The processes of the job, after a search for what has left its tree now and then."""
        if time.monotonic() - self._searched_at > SEARCH_SECONDS:
            self._family.survivors()
            self._searched_at = time.monotonic()
        return self.members()

    @property
    def memory_used(self) -> int | None:
        """The bytes that the job's processes use together, as last measured."""
        return self._hold.used

    def explain_excess(self) -> str | None:
        """Say that the job was killed for its memory, if it was."""
        return self._hold.explain()

    def stop(self, grace_seconds: float, ending: Ending = "cancel") -> None:
        """Have the job end politely, kill it after the grace; return when nothing is left of it.

        ``ending`` is what an engine makes of it; ``crash`` is what it makes of any SIGTERM.
        Without a grace the job is killed outright, so its engine reports nothing. A further call
        may come from another thread and shorten the grace. Raises ExecutorError if the job
        survives SIGKILL.
        """
        deadline = time.monotonic() + grace_seconds
        with self._lock:
            first, self._stop_asked = not self._stop_asked, True
        if first and grace_seconds > 0:
            self._ask_to_end(grace_seconds, ending)
        if not self._gone.wait(max(0.0, deadline - time.monotonic())):
            self.kill()
        if not self._gone.wait(self._kill_seconds):
            raise errors.ExecutorError(
                f"Process {self.pid} did not end within {self._kill_seconds:.0f} s after SIGKILL; "
                "it probably hangs in the kernel, on a dead network file system for example."
            )

    def end(self) -> None:
        """Kill the job if its waiting was cut short; afterwards nothing is left of it."""
        if self._gone.is_set():
            return
        self.kill()
        # An exception may have struck just after the process was reaped.
        with contextlib.suppress(ChildProcessError):
            self.wait()
        self._gone.set()

    def kill(self) -> None:
        """Kill the job at once; what has left its session follows when the wait for it ends."""
        with self._lock:
            self._stop_asked = True
            if not self._reaped:
                self._family.remember(process_tree.descendants(self.pid))
                process_tree.signal_group(self.pid, signal.SIGKILL)

    def _ask_to_end(self, grace_seconds: float, ending: Ending) -> None:
        """Send SIGTERM where that leads to a clean end.

        An engine takes it as a crash unless it has agreed to take it as a cancellation, so one
        that has not (yet) is killed, and one that has reported its last state is left to end.
        """
        engine = self._find_engine()
        if self._agrees(ending, grace_seconds):
            self._terminate(engine)
        elif self._control.concluded:
            logger.debug("Job %s has finished its run and is about to end", self.pid)
        elif self._is_engine or self._control.engine_seen:
            self.kill()
        else:
            self._terminate_group()

    def _agrees(self, ending: Ending, grace_seconds: float) -> bool:
        """Whether the engine will make of SIGTERM what is wanted of it."""
        if ending == "crash":
            return self._control.engine_seen
        return self._control.request(ending, grace_seconds)

    def _find_engine(self) -> psutil.Process | None:
        """The process at the other end of the control connection, the first one if in doubt.

        They differ where the command is a wrapper, which need not pass signals on. To be called
        before the request: an engine that agrees hangs up.
        """
        with self._lock:
            if self._reaped:
                return None
            leader = psutil.Process(self.pid)
            children = process_tree.descendants(self.pid)
            self._family.remember(children)
            port = self._control.engine_port
            return process_tree.holder_of_port([leader, *children], port) or leader

    def _terminate(self, engine: psutil.Process | None) -> None:
        """Signal the engine alone: it may need its children while it runs hooks."""
        with self._lock:
            if engine is not None and not self._reaped:
                process_tree.send([engine], signal.SIGTERM)

    def _terminate_group(self) -> None:
        with self._lock:
            if not self._reaped:
                process_tree.signal_group(self.pid, signal.SIGTERM)

    def _sweep(self) -> None:
        left = self._family.kill()
        if left:
            logger.error(
                "Processes %s of job %s could not be killed",
                ", ".join(str(process.pid) for process in left),
                self.pid,
            )

    def _is_member(self) -> process_tree.Predicate:
        marked = process_tree.with_variable(launching.JOB_ID_VARIABLE, self._job_id)
        in_session = process_tree.in_session(self.pid)
        return lambda process: in_session(process) or marked(process)
