"""The fork server: a process with Prefect imported, of which each warm job is a fork.

One thread and one loop. It lives as long as its worker, and no job of it lives longer than the
connection of whoever asked for it. It also guards jobs that were started cold: what they leave
behind when their launcher dies is killed. Standard library only; a job finds nothing imported
that Prefect has not imported.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import selectors
import shutil
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from executors.process.cleanup import job_marks
from executors.process.fork_server import forked_job, preloading, sweeping, wire

GUARD_ONLY = "-"
EXIT_UNSAFE = 3  # no process may be forked with what is imported here
PR_SET_CHILD_SUBREAPER = 36
READY_SUFFIX = ".ready"

# What an event leads to: in a forked process, the job that it is to become.
Callback = Callable[[], forked_job.Start | None]


@dataclass
class _Peer:
    """One connection, and the job that it stands for once its request is there."""

    connection: socket.socket
    received: bytearray = field(default_factory=bytearray)
    descriptors: list[int] = field(default_factory=list)
    job_id: str = ""
    pid: int = 0  # of a job that was forked here, until its pid is given back
    pidfd: int = -1  # until the job has ended


class ForkServer:
    """Serves one listener until its worker is gone, or until it is retired and has no job left."""

    def __init__(self, listener: socket.socket, path: Path, worker: int, *, forks: bool) -> None:
        self._listener = listener
        self._path = path
        self._forks = forks
        self._peers: list[_Peer] = []
        self._doomed: dict[int, int] = {}  # pidfd and pid of killed jobs that nobody waits for
        self._retiring = False
        self._worker_gone = False
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._watch(self._listener, self._accept)
        self._watch(self._woken, self._wake)
        self._watch(worker, self._lose_worker)
        self._catch_signals()

    def serve(self) -> forked_job.Start | None:
        """Serve; in a forked process, return at once what it is to become."""
        while not self._worker_gone and not (self._retiring and not self._peers):
            for key, _ in self._selector.select():
                callback: Callback = key.data
                # An event before this one may have closed it.
                if self._selector.get_map().get(key.fd) is key and (start := callback()):
                    return start
        if self._worker_gone:
            self._end_everything()
        return None

    def _catch_signals(self) -> None:
        # Handlers in Python, so that the number reaches the loop.
        for number in (signal.SIGTERM, signal.SIGCHLD):
            signal.signal(number, lambda *_: None)
        for end in (self._woken, self._waker):
            end.setblocking(False)
        signal.set_wakeup_fd(self._waker.fileno(), warn_on_full_buffer=False)

    def _watch(self, file: Any, callback: Callback) -> None:
        self._selector.register(file, selectors.EVENT_READ, callback)

    def _wake(self) -> None:
        with contextlib.suppress(BlockingIOError):
            if signal.SIGTERM in self._woken.recv(wire.READ_BYTES):
                self._retire()
        self._reap_orphans()

    def _retire(self) -> None:
        if not self._retiring:
            self._retiring = True
            self._selector.unregister(self._listener)
            self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            connection, _ = self._listener.accept()
            peer = _Peer(connection)
            self._peers.append(peer)
            self._watch(connection, functools.partial(self._hear, peer))

    def _hear(self, peer: _Peer) -> forked_job.Start | None:
        try:
            data, descriptors, _, _ = socket.recv_fds(
                peer.connection, wire.READ_BYTES, wire.MAX_DESCRIPTORS
            )
        except OSError:
            data, descriptors = b"", []
        peer.descriptors += descriptors
        if not data:
            self._lose(peer)
        elif peer.job_id:
            self._dismiss(peer)
        else:
            peer.received += data
            return self._take_request(peer)
        return None

    def _take_request(self, peer: _Peer) -> forked_job.Start | None:
        try:
            request = wire.decode(peer.received)
        except wire.WireError:
            self._drop(peer)
            return None
        if request is None:
            return None
        peer.job_id = str(request["job_id"])
        with contextlib.suppress(OSError):
            os.utime(self._path)  # tells the nursery who is in use
        if "environment" in request:
            if self._forks and len(peer.descriptors) == wire.MAX_DESCRIPTORS:
                return self._fork(peer, request)
            self._drop(peer)
        elif peer.received:  # guarded for so short a time that the end is here already
            self._dismiss(peer)
        return None

    def _fork(self, peer: _Peer, request: dict[str, Any]) -> forked_job.Start | None:
        prepared, preparing = os.pipe()
        # A signal must not reach a fork while it still has these handlers.
        mask = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        server_pid = os.getpid()
        try:
            pid = os.fork()
        except OSError:
            pid = -1
        if pid == 0:
            self._close_sockets()
            output, errors = peer.descriptors
            return forked_job.Start(
                directory=request["directory"],
                cgroup=request["cgroup"],
                environment=request["environment"],
                output=output,
                errors=errors,
                prepared=preparing,
                server_pid=server_pid,
            )
        os.close(preparing)
        if pid > 0:
            # From here on the launcher can find, signal and sweep the job by its pid and marks.
            os.read(prepared, 1)
            self._note_child(peer, pid)
        os.close(prepared)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        self._close_descriptors(peer)
        self._tell(peer, max(pid, 0))
        return None

    def _note_child(self, peer: _Peer, pid: int) -> None:
        peer.pid = pid
        peer.pidfd = os.pidfd_open(pid)
        self._watch(peer.pidfd, functools.partial(self._note_end, peer))

    def _note_end(self, peer: _Peer) -> None:
        """Tell the exit status. The zombie stays, so that pid and group still mean the job."""
        self._selector.unregister(peer.pidfd)
        os.close(peer.pidfd)
        peer.pidfd = -1
        ended = os.waitid(os.P_PID, peer.pid, os.WEXITED | os.WNOWAIT)
        assert ended is not None  # only WNOHANG may find nothing
        exited = ended.si_code == os.CLD_EXITED
        self._tell(peer, ended.si_status if exited else -ended.si_status)

    def _tell(self, peer: _Peer, number: int) -> None:
        # A launcher that is gone is noticed, and its job ended, by the next read.
        with contextlib.suppress(OSError):
            peer.connection.sendall(wire.NUMBER.pack(number))

    def _dismiss(self, peer: _Peer) -> None:
        """The launcher is done with the job."""
        if peer.pid and peer.pidfd < 0:
            os.waitpid(peer.pid, 0)
            peer.pid = 0
        if peer.pid:
            self._lose(peer)
        else:
            self._drop(peer)
        self._reap_orphans()

    def _lose(self, peer: _Peer) -> None:
        """The launcher is dead: so is its job."""
        if peer.job_id:
            sweeping.kill_group(peer.pid)
            sweeping.sweep_in_background({peer.job_id})
        if peer.pidfd >= 0:
            self._selector.unregister(peer.pidfd)
            self._doomed[peer.pidfd] = peer.pid
            self._watch(peer.pidfd, functools.partial(self._bury, peer.pidfd))
        elif peer.pid:
            os.waitpid(peer.pid, 0)
        self._drop(peer)

    def _bury(self, pidfd: int) -> None:
        self._selector.unregister(pidfd)
        os.close(pidfd)
        os.waitpid(self._doomed.pop(pidfd), 0)

    def _drop(self, peer: _Peer) -> None:
        self._selector.unregister(peer.connection)
        peer.connection.close()
        self._close_descriptors(peer)
        self._peers.remove(peer)

    def _close_descriptors(self, peer: _Peer) -> None:
        for descriptor in peer.descriptors:
            os.close(descriptor)
        peer.descriptors.clear()

    def _reap_orphans(self) -> None:
        """Take leave of what jobs have left behind: as a subreaper, this is its parent now."""
        own = {peer.pid for peer in self._peers} | set(self._doomed.values())
        with contextlib.suppress(ChildProcessError):
            while found := os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT):
                if found.si_pid in own:
                    return
                os.waitpid(found.si_pid, 0)

    def _close_sockets(self) -> None:
        """Close, in a fork, whatever would close a descriptor of the job's when it is deleted."""
        signal.set_wakeup_fd(-1)
        self._selector.close()
        own = [self._listener, self._woken, self._waker, *(peer.connection for peer in self._peers)]
        for each in own:
            each.close()

    def _lose_worker(self) -> None:
        self._worker_gone = True

    def _end_everything(self) -> None:
        """The worker is dead: nothing of its jobs may be left."""
        for peer in self._peers:
            sweeping.kill_group(peer.pid)
        sweeping.sweep({peer.job_id for peer in self._peers if peer.job_id})
        shutil.rmtree(self._path.parent, ignore_errors=True)


def adopt_orphans() -> None:
    """Become the parent of what jobs leave behind; in a container, nobody else might reap it."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))


def worker_descriptor(pid: int) -> int:
    """A descriptor that says when the worker is gone; ends this process if it is so already.

    Not a pipe: the worker's pool children would inherit its other end and keep it open.
    """
    if os.getppid() != pid:
        sys.exit(0)
    descriptor = os.pidfd_open(pid)
    if os.getppid() != pid:
        sys.exit(0)
    return descriptor


def restart_without(name: str, arguments: list[str], preload: list[str]) -> None:
    """Become a fork server that leaves a module out; returns never."""
    kept = ",".join(each for each in preload if each != name)
    program = [sys.executable, sys.argv[0], *arguments[:3], kept]
    os.execve(sys.executable, program, {**os.environ, **job_marks.placeholders()})  # noqa: S606


def serve_at(path: Path, worker_pid: int, *, forks: bool) -> forked_job.Start | None:
    """Listen, say that it is ready, and serve."""
    worker = worker_descriptor(worker_pid)
    adopt_orphans()
    unready = path.with_suffix(f".{os.getpid()}")
    server = ForkServer(wire.listen(unready), path, worker, forks=forks)
    # Whoever sees them sees them whole.
    said = path.with_suffix(f".said-{os.getpid()}")
    said.write_text(str(os.getpid()))
    said.replace(path.with_suffix(READY_SUFFIX))
    unready.replace(path)
    return server.serve()


def main(arguments: list[str]) -> None:
    """Serve: ``<worker's pid> <path of the socket> <engine or -> <modules, comma-separated>``."""
    path, engine = Path(arguments[1]), arguments[2]
    preload = [name for name in arguments[3].split(",") if name]
    own_marks = job_marks.WritableMarks()
    # Whoever started this may have blocked them all.
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    if not getattr(sys.flags, "safe_path", False):  # of Python 3.11
        sys.path[0] = os.getcwd()  # noqa: PTH109 - in place of this program's directory
    if engine != GUARD_ONLY:
        try:
            preloading.preload(engine, preload)
        except preloading.UnsafeModuleError as error:
            if error.name not in preload:
                preloading.say(f"no flow run can be started warm: {error}")
                sys.exit(EXIT_UNSAFE)
            preloading.say(f"DISPATCHER_PRELOAD: {error}, so it is left out")
            restart_without(error.name, arguments, preload)
    start = serve_at(path, int(arguments[0]), forks=engine != GUARD_ONLY)
    if start is not None:
        forked_job.become(start, own_marks, engine)
