"""Servers and processes of one benchmark, all on the loopback interface and all gone at its end."""

from __future__ import annotations

import compileall
import contextlib
import dataclasses
import functools
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import redis

from dispatcher.prefect_api import client, transport
from dispatcher.standalone import environment, ports, prefect, process, readiness, valkey
from dispatcher.standalone.component import Component, StopStep
from dispatcher.standalone.directory import DataDirectory

ROOT = Path(__file__).parents[1]
PACKAGES = ("dispatcher", "executors", "benchmarks")  # below the root
SQLITE, POSTGRESQL = "sqlite", "postgresql"
DATABASES = (SQLITE, POSTGRESQL)

READY_SECONDS = 60.0
POLL_SECONDS = 0.05

# Whoever starts a benchmark may have any of these; both sides are measured with what they set.
FOREIGN = ("DISPATCHER_", "PREFECT_", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")

T = TypeVar("T")


class Site:
    """A temporary directory, and the processes that were started in it.

    To be used as a context, in the main thread: the processes end with the thread.
    """

    def __init__(self) -> None:
        self._stack = contextlib.ExitStack()
        self.environment = own_environment()
        self.redis_url = ""

    def __enter__(self) -> Site:
        # Otherwise a script that is stopped from outside would leave its directory behind.
        signal.signal(signal.SIGTERM, lambda *_: sys.exit("stopped"))
        directory = tempfile.TemporaryDirectory(prefix="benchmark-", ignore_cleanup_errors=True)
        self.directory = Path(self._stack.enter_context(directory))
        self.directory.chmod(0o755)  # for the user that PostgreSQL wants to be
        self._data = DataDirectory(self.directory / "data")
        self._stack.enter_context(self._data.locked())
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def start(self, component: Component) -> process.Process:
        """Start a process and return it once it is ready; it stops with the site at the latest.

        Raises:
            RuntimeError: it ended or was not ready in time.
        """
        started = self.launch(component)
        self.await_ready(started)
        return started

    def launch(self, component: Component) -> process.Process:
        """Start a process and do not wait for it."""
        launched = process.Process(component, self._data.logs)
        launched.start()
        self._stack.callback(launched.stop)
        return launched

    def await_ready(self, started: process.Process) -> None:
        """Wait for a process that was launched; raises as :meth:`start`."""

        def is_ready() -> bool:
            if not started.is_running:
                raise RuntimeError(f"{started.name} ended:\n{started.tail()}")
            return started.is_ready()

        wait_for(is_ready, seconds=started.component.ready_seconds, what=f"{started.name} is ready")

    def start_redis(self) -> process.Process:
        """Start the Redis of ``dispatcher standalone``, which keeps an append-only file."""
        port = ports.free_port()
        self.redis_url = valkey.url(port, self._data.password())
        return self.start(valkey.component(self._data, port=port, environment=self.environment))

    def redis_database(self, number: int) -> str:
        """The URL of another database of that Redis."""
        return f"{self.redis_url.rpartition('/')[0]}/{number}"

    def connect_redis(self, number: int = 0) -> redis.Redis:
        """A client of one of its databases, closed with the site."""
        connected = redis.Redis.from_url(self.redis_database(number), decode_responses=True)
        self._stack.callback(connected.close)
        return connected

    def start_prefect(self, database: str) -> PrefectServer:
        """Start a Prefect server of its own on SQLite or PostgreSQL."""
        home = self.directory / f"prefect-{database}"
        home.mkdir()
        variables = {**self.environment, "PREFECT_HOME": str(home)}
        processes = []
        if database == POSTGRESQL:
            url, server = self._start_postgresql()
            variables["PREFECT_API_DATABASE_CONNECTION_URL"] = url
            processes.append(server)
        port = ports.free_port()
        component = prefect.component(home, port=port, environment=variables)
        processes.append(self.start(dataclasses.replace(component, name=f"prefect-{database}")))
        return PrefectServer(prefect.api_url(port), database, processes)

    def start_stub(self) -> PrefectServer:
        """Start the stub in place of a Prefect server."""
        port = ports.free_port()
        component = Component(
            name="stub",
            command=(sys.executable, "-m", "benchmarks.stub_api", str(port)),
            environment=self.environment,
            directory=ROOT,
            is_ready=lambda: readiness.http_answers(port, "/api/health"),
            ready_seconds=READY_SECONDS,
            stop=(StopStep(signal.SIGTERM, 5.0),),
        )
        return PrefectServer(prefect.api_url(port), "stub", [self.start(component)])

    def connect_api(self, api_url: str) -> client.PrefectClient:
        """A client of an API, closed with the site."""
        connected = client.PrefectClient(transport.Transport(api_url))
        self._stack.callback(connected.transport.close)
        return connected

    def _start_postgresql(self) -> tuple[str, process.Process]:
        directory, port = self.directory / "postgresql", ports.free_port()
        directory.mkdir()
        if os.geteuid() == 0:
            shutil.chown(directory, "postgres", "postgres")
        initialize = _as_postgres("initdb", "-D", str(directory), "-U", "postgres", "-A", "trust")
        subprocess.run(initialize, cwd=directory, check=True, stdout=subprocess.DEVNULL)
        address = ("-c", f"listen_addresses={ports.LOOPBACK}", "-p", str(port))
        component = Component(
            name=POSTGRESQL,
            command=_as_postgres("postgres", "-D", str(directory), "-k", str(directory), *address),
            environment=self.environment,
            directory=directory,
            is_ready=functools.partial(_postgresql_answers, port),
            ready_seconds=READY_SECONDS,
            stop=(StopStep(signal.SIGINT, 10.0),),
        )
        url = f"postgresql+asyncpg://postgres@{ports.LOOPBACK}:{port}/postgres"
        return url, self.start(component)


@dataclasses.dataclass(frozen=True)
class PrefectServer:
    """Where it is, and the processes it consists of."""

    api_url: str
    database: str
    processes: list[process.Process]

    @property
    def roots(self) -> list[int]:
        """The pids to sample."""
        return roots(self.processes)


def roots(processes: list[process.Process]) -> list[int]:
    """The pids to sample of those processes that run."""
    return [each.pid for each in processes if each.is_running and each.pid is not None]


def own_environment() -> dict[str, str]:
    """The user's environment, without settings of either side; modules may be compiled."""
    kept = environment.own(os.environ)
    variables = {name: value for name, value in kept.items() if not name.startswith(FOREIGN)}
    python_path = filter(None, [str(ROOT), variables.get("PYTHONPATH")])
    return {**variables, "PYTHONPATH": os.pathsep.join(python_path)}


def compile_bytecode() -> None:
    """Compile what both sides import, so that neither does it while it is measured."""
    compileall.compile_dir(sysconfig.get_path("purelib"), quiet=2, workers=0)
    for package in PACKAGES:
        compileall.compile_dir(ROOT / package, quiet=2)


def install_entry_point(directory: Path, group: str, name: str, target: str) -> None:
    """Make a directory for PYTHONPATH that registers an entry point, as an installed package."""
    information = directory / "benchmark_plugin-1.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: benchmark-plugin\n")
    (information / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")


def wait_for(
    predicate: Callable[[], T], *, seconds: float, what: str, every: float = POLL_SECONDS
) -> T:
    """Return the predicate's first true value; raises TimeoutError with ``what`` if none comes."""
    deadline = time.monotonic() + seconds
    while not (value := predicate()):
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {seconds:g} s: {what}")
        time.sleep(every)
    return value


def _as_postgres(program: str, *arguments: str) -> tuple[str, ...]:
    """The command line of a program of PostgreSQL, which refuses to be root."""
    command = (_postgresql_program(program), *arguments)
    if os.geteuid() != 0:
        return command
    return ("setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups", *command)


def _postgresql_program(name: str) -> str:
    found = shutil.which(name) or next(_installed(name), None)
    if found is None:
        raise SystemExit(f"PostgreSQL's {name} was not found: install PostgreSQL, or use SQLite")
    return found


def _installed(name: str) -> Iterator[str]:
    # Where Debian and its like put what users do not call themselves.
    found = Path("/usr/lib/postgresql").glob(f"*/bin/{name}")
    yield from sorted(map(str, found), reverse=True)


def _postgresql_answers(port: int) -> bool:
    ready = [_postgresql_program("pg_isready"), "-q", "-h", ports.LOOPBACK, "-p", str(port)]
    return subprocess.run(ready, check=False).returncode == 0
