"""The data directory: what survives a restart, and the lock that one stack holds on it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from dispatcher.standalone import errors, ports

PRIVATE_DIRECTORY_MODE = 0o700
PRIVATE_FILE_MODE = 0o600
PASSWORD_BYTES = 32


class DataDirectory:
    """Paths below the data directory. Private to the user, and ignored by git."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Create the directory and hold its lock.

        Raises DataDirectoryUnusable when it cannot be written or another stack holds the lock.
        """
        try:
            self._create()
            lock = (self.path / "lock").open("a+")
        except OSError as error:
            raise errors.DataDirectoryUnusable(
                f"The data directory {self.path} cannot be used: {error.strerror}. "
                "Choose another one with --data-dir."
            ) from error
        with lock:
            self._lock(lock)
            yield

    @property
    def logs(self) -> Path:
        """Where each component's log is."""
        return self._subdirectory("logs")

    @property
    def valkey(self) -> Path:
        """Where Valkey keeps its data."""
        return self._subdirectory("valkey")

    @property
    def prefect(self) -> Path:
        """The PREFECT_HOME of the stack, with the server's SQLite database."""
        return self._subdirectory("prefect")

    @property
    def beat_schedule(self) -> Path:
        """The file in which beat remembers when it last sent what."""
        return self.path / "beat-schedule"

    @property
    def ports(self) -> ports.Ports:
        """The remembered ports."""
        return ports.Ports(self.path / "ports.json")

    def password(self) -> str:
        """Return the Redis password, generated at the first call."""
        path = self.path / "redis-password"
        if not path.exists():
            write_private(path, secrets.token_urlsafe(PASSWORD_BYTES))
        return path.read_text()

    def _create(self) -> None:
        self.path.mkdir(mode=PRIVATE_DIRECTORY_MODE, parents=True, exist_ok=True)
        (self.path / ".gitignore").write_text("*\n")

    def _subdirectory(self, name: str) -> Path:
        directory = self.path / name
        directory.mkdir(mode=PRIVATE_DIRECTORY_MODE, exist_ok=True)
        return directory

    def _lock(self, lock: IO[str]) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise errors.DataDirectoryUnusable(
                f"The data directory {self.path} is in use by another dispatcher "
                f"(pid {lock.read().strip()}): stop it, or choose another one with --data-dir."
            ) from None
        lock.truncate(0)
        lock.write(f"{os.getpid()}\n")
        lock.flush()


def write_private(path: Path, text: str) -> None:
    """Write a file that no other user can read, at no moment."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, PRIVATE_FILE_MODE)
    with os.fdopen(descriptor, "w") as file:
        file.write(text)
