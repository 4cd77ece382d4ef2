"""A real Prefect server for tests: its own process, port and SQLite file."""

from __future__ import annotations

import contextlib
import functools
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Self

from tests import waiting

START_SECONDS = 120.0  # the first start on a busy machine compiles and migrates
STOP_SECONDS = 10.0

# The interpreter of another release than that of the tests, see tests/compatibility.py.
PYTHON = os.environ.get("TEST_PREFECT_SERVER", sys.executable)
# One process serves the API and its background services, without a second one in front.
_COMMAND = (PYTHON, "-m", "uvicorn", "--factory", "prefect.server.api.server:create_app")

_ENVIRONMENT = {
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "PREFECT_SERVER_UI_ENABLED": "false",
    "PREFECT_LOGGING_LEVEL": "WARNING",
    "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
}

# Starts uvicorn (the arguments) and ends it if the tests die without having stopped it.
_DIES_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the tests are gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


class PrefectServer:
    """A Prefect server on a free loopback port, its data below ``directory``.

    ``cache`` is a directory where the migrated database is kept from one use to the next, which
    saves some ten seconds at each start. ``environment`` adds settings, such as
    ``PREFECT_SERVER_API_AUTH_STRING``.
    """

    def __init__(
        self,
        directory: Path,
        *,
        environment: Mapping[str, str] | None = None,
        cache: Path | None = None,
    ) -> None:
        self.directory = directory
        self.port = _free_port()
        self._environment = dict(environment or {})
        self._cache = cache
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def api_url(self) -> str:
        """What PREFECT_API_URL is for this server."""
        return f"http://127.0.0.1:{self.port}/api"

    @property
    def log(self) -> Path:
        """Where the server's output goes."""
        return self.directory / "server.log"

    def start(self) -> Self:
        """Start the server and wait until it answers; also after :meth:`stop`, on the same data."""
        self.directory.mkdir(parents=True, exist_ok=True)
        self._take_database_from_cache()
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                self._command(),
                env=self._full_environment(),
                cwd=self.directory,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            waiting.wait_for(
                self._answers, seconds=START_SECONDS, every=0.1, what="the Prefect server answers"
            )
        except BaseException:
            self.stop()
            raise
        self._put_database_into_cache()
        return self

    def stop(self) -> None:
        """End the server and whatever it started."""
        if self._process is None:
            return
        self._signal(signal.SIGTERM)
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            pass
        finally:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Let the server hang: connections are taken, nothing is answered."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self._signal(signal.SIGCONT)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def _database(self) -> Path:
        return self.directory / "prefect.db"

    def _command(self) -> list[str]:
        address = ("--host", "127.0.0.1", "--port", str(self.port))
        uvicorn = (*_COMMAND, *address, "--timeout-keep-alive", "5", "--log-level", "warning")
        return [sys.executable, "-c", _DIES_WITH_PARENT, str(os.getpid()), *uvicorn]

    def _full_environment(self) -> dict[str, str]:
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")
        }
        # Without compiled modules a server needs 8 s to start in place of 3.
        if inherited.pop("PYTHONDONTWRITEBYTECODE", None) and self._cache is not None:
            inherited["PYTHONPYCACHEPREFIX"] = str(self._cache / "pycache")
        return {
            **inherited,
            **_ENVIRONMENT,
            "PREFECT_HOME": str(self.directory),
            "PREFECT_API_DATABASE_CONNECTION_URL": f"sqlite+aiosqlite:///{self._database}",
            **self._environment,
        }

    def _answers(self) -> bool:
        assert self._process is not None
        if self._process.poll() is not None:
            raise AssertionError(f"the Prefect server ended:\n{self.log.read_text()[-4000:]}")
        try:
            with urllib.request.urlopen(self.api_url + "/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def _signal(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, number)

    def _take_database_from_cache(self) -> None:
        template = self._template()
        if template is not None and template.exists() and not self._database.exists():
            self._database.write_bytes(template.read_bytes())

    def _put_database_into_cache(self) -> None:
        """Keep the database of a server that has just started, and so holds nothing yet."""
        template = self._template()
        if template is None or template.exists():
            return
        # Another test session may do the same at this moment.
        unfinished = template.with_suffix(f".{os.getpid()}")
        with (
            contextlib.closing(sqlite3.connect(self._database)) as source,
            contextlib.closing(sqlite3.connect(unfinished)) as copy,
        ):
            source.backup(copy)
        unfinished.replace(template)

    def _template(self) -> Path | None:
        if self._cache is None:
            return None
        return self._cache / f"prefect-{_release()}.db"


@functools.cache
def _release() -> str:
    """The release of Prefect that the server is of."""
    if sys.executable == PYTHON:
        return metadata.version("prefect")
    ask = "import importlib.metadata; print(importlib.metadata.version('prefect'))"
    done = subprocess.run([PYTHON, "-c", ask], check=True, capture_output=True, text=True)
    return done.stdout.strip()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
