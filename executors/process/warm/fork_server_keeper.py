"""Keeps the fork servers of one worker: starts them, replaces them, and ends them with it.

Lives in the worker's main process, as one thread. Pool children reach it, and the fork servers,
by sockets in a directory whose name is in their environment.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from executors import base, errors
from executors.process import interpreters, starting
from executors.process import launch as launching
from executors.process.cleanup import job_marks
from executors.process.engine_control import protocol
from executors.process.fork_server import fork_server, sweeping, wire
from executors.process.warm import fingerprint, generations

PROGRAM = Path(fork_server.__file__).with_name("main.py")
DIRECTORY_PREFIX = "dispatcher-"

CHECK_SECONDS = 1.0
STOP_SECONDS = 5.0
REQUEST_SECONDS = 1.0
REMEMBERED_REQUESTS = 100

logger = logging.getLogger(__name__)


class ForkServerKeeper:
    """The fork servers of a worker; a context manager.

    ``environment`` is what a plain run of this worker gets. Without ``preload_engine`` there is
    one fork server only, which forks nothing and guards jobs that were started cold.
    """

    def __init__(
        self,
        directory: Path,
        environment: Mapping[str, str],
        *,
        python: str = sys.executable,
        engine: str = protocol.ENGINE_MODULE,
        preload: tuple[str, ...] = (),
        guard_only: bool = False,
        eager: bool = True,
        limits: generations.Limits = generations.Limits(),  # noqa: B008 - it is frozen
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._directory = directory
        self._python = python
        self._environment = interpreters.activated(environment, python)
        self._engine = fork_server.GUARD_ONLY if guard_only else engine
        self._preload = preload
        self._limits = limits
        self._clock = clock
        self._breeds: dict[str, generations.Breed] = {}
        self._retired: list[subprocess.Popen[bytes]] = []
        self._requests: dict[str, int] = {}
        self._default = ""
        self._closing = False
        self._listener = wire.listen(directory / starting.NURSERY)
        self._woken, self._waker = socket.socketpair()
        if eager or guard_only:
            self._keep_default()
        self._thread = threading.Thread(target=self._run, name="fork-servers", daemon=True)

    def __enter__(self) -> ForkServerKeeper:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """End every fork server, and with it what jobs it may still have."""
        self._closing = True
        self._waker.send(b"\0")
        self._thread.join()
        for end in (self._listener, self._woken, self._waker):
            end.close()
        servers = [*self._current(), *self._retired]
        for process in servers:
            process.send_signal(signal.SIGTERM)
        for process in servers:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
            process.kill()
            process.wait()

    def pids(self) -> list[int]:
        """The fork servers that are there now."""
        return [process.pid for process in [*self._current(), *self._retired]]

    def _current(self) -> list[subprocess.Popen[bytes]]:
        both = [
            each for breed in self._breeds.values() for each in (breed.current, breed.successor)
        ]
        return [server.process for server in both if server is not None]

    def _run(self) -> None:
        # Signals are for the main thread.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        with selectors.DefaultSelector() as selector:
            selector.register(self._listener, selectors.EVENT_READ)
            selector.register(self._woken, selectors.EVENT_READ)
            while not self._closing:
                if any(key.fileobj is self._listener for key, _ in selector.select(CHECK_SECONDS)):
                    self._take_request()
                try:
                    self.check()
                except OSError as error:  # no process or no memory is left: runs start cold
                    logger.error("The fork servers could not be looked after: %s", error)

    def check(self) -> None:
        """Look after every fork server once."""
        if self._default:
            self._keep_default()
        for breed in list(self._breeds.values()):
            self._look_after(breed)
        self._retired = [process for process in self._retired if process.poll() is None]

    def _take_request(self) -> None:
        with contextlib.suppress(OSError, wire.WireError, KeyError):
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(REQUEST_SECONDS)
                received = bytearray()
                while data := connection.recv(wire.READ_BYTES):
                    received += data
            message = wire.decode(received)
            if message is not None:
                breed = self._breed(message["name"], message["python"], message["settings"])
                self.ask_for(breed, urgent=message["urgent"])

    def _breed(self, name: str, python: str, settings: Mapping[str, str]) -> generations.Breed:
        packages = generations.own_packages()
        if python != sys.executable:
            try:
                packages = interpreters.examine(python, self._engine, settings).packages
            except errors.LaunchError as error:
                logger.warning("No flow run can be started warm there: %s", error)
                packages = ()
        return generations.Breed(name, python, dict(settings), packages)

    def ask_for(self, breed: generations.Breed, *, urgent: bool) -> None:
        """Start a fork server for these settings, if they seem worth it."""
        name = breed.name
        if name in self._breeds or self._engine == fork_server.GUARD_ONLY:
            return
        if name == fingerprint.of(self._environment, self._python):
            self._keep_default()
            return
        self._requests[name] = self._requests.get(name, 0) + 1
        if urgent or self._requests[name] >= self._limits.requests:
            del self._requests[name]
            self._make_room()
            self._breeds[name] = breed
        elif len(self._requests) > REMEMBERED_REQUESTS:
            del self._requests[next(iter(self._requests))]

    def _keep_default(self) -> None:
        """Have a fork server for the plain runs of this worker, also when a profile has changed."""
        name = fingerprint.of(self._environment, self._python)
        if name == self._default:
            return
        if self._default in self._breeds:
            self._dissolve(self._breeds[self._default])
        self._default = name
        if name not in self._breeds:
            settings = fingerprint.settings_of(self._environment)
            self._breeds[name] = self._breed(name, self._python, settings)
        breed = self._breeds[name]
        if breed.current is None and breed.successor is None:
            breed.successor = self._start(breed)
        guard = self._directory / f"{starting.GUARD}.new"
        guard.unlink(missing_ok=True)
        guard.symlink_to(f"{name}{starting.SERVER_SUFFIX}")
        guard.replace(self._directory / starting.GUARD)

    def _make_room(self) -> None:
        """Let go of the fork server that has been idle for longest, but of the default one."""
        others = [breed for breed in self._breeds.values() if breed.name != self._default]
        if len(others) >= self._limits.servers - 1:
            self._dissolve(min(others, key=self._last_used))

    def _last_used(self, breed: generations.Breed) -> float:
        try:
            return self._socket(breed).stat().st_mtime
        except OSError:
            return 0.0

    def _dissolve(self, breed: generations.Breed) -> None:
        del self._breeds[breed.name]
        self._socket(breed).unlink(missing_ok=True)
        for server in (breed.current, breed.successor):
            if server is not None:
                self._retire(server)

    def _retire(self, server: generations.Server) -> None:
        """Let a fork server go as soon as its last job has ended."""
        server.process.send_signal(signal.SIGTERM)
        self._retired.append(server.process)

    def _look_after(self, breed: generations.Breed) -> None:
        now = self._clock()
        if breed.current is not None and breed.current.process.poll() is not None:
            self._note_death(breed, breed.current)
            breed.current = None
        if breed.successor is not None and breed.successor.process.poll() is not None:
            self._note_death(breed, breed.successor)
            breed.successor = None
        if breed.successor is not None and self._is_ready(breed, breed.successor):
            self._succeed(breed, breed.successor)
        if breed.successor is None and now >= breed.not_before and self._needs_one(breed, now):
            try:
                breed.successor = self._start(breed)
            except (FileNotFoundError, PermissionError) as error:
                # Its environment was taken away; runs say so themselves.
                breed.not_before = now + self._limits.pause
                logger.error("%s can have no fork server: %s", breed.python, error.strerror)

    def _needs_one(self, breed: generations.Breed, now: float) -> bool:
        if breed.current is None:
            return True
        reason = generations.reason_to_replace(
            breed.current,
            now=now,
            size=generations.resident_bytes(breed.current.process.pid),
            packages=self._current_packages(breed, now),
            limits=self._limits,
        )
        if reason:
            logger.info("Fork server %s is replaced: %s", breed.current.process.pid, reason)
        return reason is not None

    def _succeed(self, breed: generations.Breed, server: generations.Server) -> None:
        if breed.current is not None:
            self._retire(breed.current)
        server.size = generations.resident_bytes(server.process.pid)
        breed.current, breed.successor = server, None
        logger.debug("Fork server %s is ready", server.process.pid)

    def _note_death(self, breed: generations.Breed, server: generations.Server) -> None:
        now = self._clock()
        quick = server.size == 0 or now - server.born < self._limits.quick_death
        breed.quick_deaths = breed.quick_deaths + 1 if quick else 0
        status = server.process.returncode
        if status == fork_server.EXIT_UNSAFE or breed.quick_deaths >= self._limits.quick_deaths:
            breed.quick_deaths = 0
            breed.not_before = now + self._limits.pause
            logger.error(
                "No fork server can be kept (exit status %s, see above); flow runs are started "
                "cold for the next %.0f s. DISPATCHER_START=cold does without fork servers.",
                status,
                self._limits.pause,
            )
        elif status != 0:
            logger.warning("Fork server %s ended with status %s", server.process.pid, status)

    def _start(self, breed: generations.Breed) -> generations.Server:
        plain = {
            name: value
            for name, value in self._environment.items()
            if not fingerprint.is_setting(name)
        }
        arguments = [
            str(os.getpid()),
            str(self._socket(breed)),
            self._engine,
            ",".join(self._preload),
        ]
        process = subprocess.Popen(
            [breed.python, str(PROGRAM), *arguments],
            cwd=self._directory,
            env={
                **plain,
                **breed.settings,
                sweeping.WORKER_PYTHON_VARIABLE: sys.executable,
                **job_marks.placeholders(),
            },
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        stamp = generations.packages_stamp(breed.packages)
        return generations.Server(process, self._clock(), packages=stamp)

    def _is_ready(self, breed: generations.Breed, server: generations.Server) -> bool:
        try:
            said = self._socket(breed).with_suffix(fork_server.READY_SUFFIX).read_text()
        except OSError:
            return False
        return said == str(server.process.pid) and self._socket(breed).exists()

    def _socket(self, breed: generations.Breed) -> Path:
        return self._directory / f"{breed.name}{starting.SERVER_SUFFIX}"

    def _current_packages(self, breed: generations.Breed, now: float) -> int:
        if now - breed.stamped >= self._limits.packages_every:
            breed.stamped, breed.stamp = now, generations.packages_stamp(breed.packages)
        return breed.stamp


def plain_environment(environ: Mapping[str, str]) -> dict[str, str]:
    """What a run without variables of its own gets of a worker's environment, but for its marks."""
    return {
        name: value
        for name, value in environ.items()
        if not name.startswith((*launching.OWN_PREFIXES, "PREFECT__"))
    }


@contextlib.contextmanager
def serving(options: base.NodeOptions, **changes: Any) -> Iterator[None]:
    """Keep fork servers for this process and the pool children that it forks from now on."""
    if options.python:
        os.environ[interpreters.PYTHON_SETTING] = options.python
    if sys.platform != "linux" or is_served():
        yield
        return
    directory = Path(tempfile.mkdtemp(prefix=f"{DIRECTORY_PREFIX}{os.getpid()}-"))
    os.environ[starting.DIRECTORY_VARIABLE] = str(directory)
    os.environ[starting.MODE_VARIABLE] = options.start
    try:
        plain = plain_environment(os.environ)
        with ForkServerKeeper(
            directory,
            plain,
            python=default_python(options.python, plain),
            preload=options.preload,
            guard_only=options.start == "cold",
            eager=options.eager,
            **changes,
        ):
            yield
    finally:
        os.environ.pop(starting.DIRECTORY_VARIABLE, None)
        shutil.rmtree(directory, ignore_errors=True)


def default_python(named: str | None, environment: Mapping[str, str]) -> str:
    """The interpreter of plain runs; the worker's own if it is none, which runs say themselves."""
    python = interpreters.path_of(named)
    try:
        if python != sys.executable:
            interpreters.examine(python, protocol.ENGINE_MODULE, environment)
    except errors.LaunchError as error:
        logger.error("%s is wrong: %s", interpreters.PYTHON_SETTING, error)
        return sys.executable
    return python


def is_served() -> bool:
    """Whether an executor of this very process keeps fork servers already."""
    directory = Path(os.environ.get(starting.DIRECTORY_VARIABLE, ""))
    return directory.name.startswith(f"{DIRECTORY_PREFIX}{os.getpid()}-")
