"""Which jobs run on this host, in files that the kernel unlocks when their worker dies.

A job that ends takes its file with it. What is left of a job whose worker was killed is told by a
file that nobody locks any more, from what a flow has left behind on purpose: that has none.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

from executors.process.cleanup import job_marks, process_tree

DIRECTORY_PREFIX = "dispatcher-jobs-"
OWNER_ONLY = 0o700
# A name that is not yet, or not any more, that of a job.
HIDDEN = "."
OPEN_ATTEMPTS = 10
# Between two looks for jobs of workers that were killed on this host.
SWEEP_SECONDS = 10.0

logger = logging.getLogger(__name__)


class JobRecords:
    """The records of one user's jobs. Thread-safe; what cannot be written is done without."""

    def __init__(self, directory: Path | None = None, user: int | None = None) -> None:
        self._user = os.getuid() if user is None else user
        name = f"{DIRECTORY_PREFIX}{self._user}"
        self._directory = directory or Path(tempfile.gettempdir(), name)

    @contextlib.contextmanager
    def recorded(self, job_id: str) -> Iterator[None]:
        """Record a job for as long as it runs."""
        path = self._directory / f"{namespace()}-{job_id}"
        try:
            descriptor = self._create(path)
        except OSError as error:
            logger.debug("job %s is not recorded: %s", job_id, error)
            yield
            return
        try:
            yield
        finally:
            # Before it is unlocked, so that nobody takes the job for a lost one.
            path.unlink(missing_ok=True)
            os.close(descriptor)
            self._tidy()

    def sweep(self) -> int:
        """Kill what is left of jobs whose worker is gone; return how many such jobs there were."""
        lost = {path: path.name.rpartition("-")[2] for path in self._unlocked()}
        if not lost:
            return 0
        job_ids = frozenset(lost.values())
        family = process_tree.Family(
            lambda process: (
                process_tree.environment(process).get(job_marks.JOB_ID_VARIABLE) in job_ids
            )
        )
        found = family.survivors()
        for left in family.kill():
            logger.error("process %s of a job that lost its worker could not be killed", left.pid)
        if found:
            pids = ", ".join(str(process.pid) for process in found)
            logger.warning("killed what was left of jobs that lost their worker: %s", pids)
        for path in lost:
            path.unlink(missing_ok=True)
        self._tidy()
        return len(lost)

    def _create(self, path: Path) -> int:
        # Nobody may see it before it is locked.
        hidden = path.with_name(f"{HIDDEN}{path.name}")
        descriptor = self._open(hidden)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        hidden.rename(path)
        return descriptor

    def _open(self, path: Path) -> int:
        for _ in range(OPEN_ATTEMPTS):
            # The last job of another worker may take the directory away at any moment.
            with contextlib.suppress(FileNotFoundError, FileExistsError):
                self._directory.mkdir(mode=OWNER_ONLY, exist_ok=True)
                if self._directory.stat().st_uid != self._user:
                    raise PermissionError(f"{self._directory} is somebody else's")
                return os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        raise FileNotFoundError(f"{self._directory} does not stay")

    def _tidy(self) -> None:
        """Take the directory away with the last record in it."""
        with contextlib.suppress(OSError):
            self._directory.rmdir()

    def _unlocked(self) -> Iterator[Path]:
        # Those of another process namespace, as containers have, name processes of that one.
        for path in self._directory.glob(f"{namespace()}-*"):
            with contextlib.suppress(OSError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # A job that ended since it was listed has taken its file away, then the lock.
                if path.exists():
                    yield path


def namespace() -> str:
    """Tells apart process tables on one host; constant where there are no namespaces."""
    try:
        return str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        return "0"


@contextlib.contextmanager
def sweeping(records: JobRecords, every_seconds: float = SWEEP_SECONDS) -> Iterator[None]:
    """Sweep now, and again and again until the block ends, from a thread."""
    ended = threading.Event()

    def loop() -> None:
        while not ended.wait(every_seconds):
            _sweep(records)

    _sweep(records)
    thread = threading.Thread(target=loop, name="job-sweep", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()


def _sweep(records: JobRecords) -> None:
    try:
        records.sweep()
    except Exception:
        # Housekeeping: the next look comes soon, and no run may suffer from it.
        logger.exception("looking for jobs that lost their worker failed")
