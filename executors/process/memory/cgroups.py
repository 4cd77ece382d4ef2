"""Holding a job to its memory limit by a control group of its own (Linux, cgroup v2).

The kernel then counts all of the job's processes, wherever they go, and kills all of them together
at the limit. A worker may only make such groups below one that was given to it: by systemd
(``Delegate=yes``), or as the root of a container that has a writable ``/sys/fs/cgroup``.
"""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# Set by the worker for its pool children: where the groups of jobs are made. Never reaches a job.
BASE_VARIABLE = "DISPATCHER_CGROUP"

PROC_SELF = Path("/proc/self")

# By these systemd marks what it has delegated; the first needs privileges to be read.
DELEGATION_MARKS = ("trusted.delegate", "user.delegate")

# The kernel allows processes in the leaves of the tree only.
WORKER_LEAF = "dispatcher-worker"
JOB_PREFIX = "dispatcher-job-"

# A killed worker leaves empty groups. One that is younger may belong to a job about to start.
ABANDONED_SECONDS = 600.0
# How often a worker that starts others meanwhile tries to have nobody left in its own group.
MOVES = 10

logger = logging.getLogger(__name__)


class NoCgroupError(Exception):
    """No groups can be made here; the message says why."""


@dataclass(frozen=True)
class JobCgroup:
    """The control group of one job."""

    path: Path

    @property
    def is_exceeded(self) -> bool:
        """Whether the kernel has killed something in it for going over the limit.

        It counts as well whom it kills because the whole machine is out of memory.
        """
        events = dict(line.split() for line in self._read("memory.events").splitlines())
        return int(events.get("oom", 0)) > 0 and int(events.get("oom_kill", 0)) > 0

    @property
    def peak(self) -> int:
        """The most bytes that were in use in it; 0 where the kernel does not tell (before 5.19)."""
        return int(self._read("memory.peak") or 0)

    def _read(self, name: str) -> str:
        try:
            return (self.path / name).read_text()
        except OSError:
            return ""


@contextlib.contextmanager
def prepared() -> Iterator[None]:
    """Have a place for the groups of jobs, where that is possible, for as long as the block lasts.

    For the main process of a worker, before it has children: they inherit where it is.
    """
    try:
        base = prepare(find_own())
    except NoCgroupError as error:
        logger.debug("Memory limits of runs are kept by watching, since %s", error)
        yield
        return
    logger.debug("Memory limits of runs are kept by control groups in %s", base)
    os.environ[BASE_VARIABLE] = str(base)
    try:
        yield
    finally:
        del os.environ[BASE_VARIABLE]


def find_own(proc: Path = PROC_SELF) -> Path:
    """Return the directory of this process' control group. Raises NoCgroupError."""
    try:
        lines = (proc / "cgroup").read_text().splitlines()
        mounts = [line.split() for line in (proc / "mountinfo").read_text().splitlines()]
    except OSError:
        raise NoCgroupError("there are no control groups here") from None
    own = next((line.removeprefix("0::") for line in lines if line.startswith("0::")), None)
    for fields in mounts:
        if own is not None and "cgroup2" in fields[fields.index("-") :]:
            root, mount_point = fields[3], fields[4]
            if own == root or own.startswith(root.rstrip("/") + "/"):
                return Path(mount_point) / own.removeprefix(root).lstrip("/")
    raise NoCgroupError("the control group of this process is not to be seen here")


def prepare(own: Path) -> Path:
    """Make the groups of jobs possible, below one that was given to us; return that one.

    Raises NoCgroupError.
    """
    base = find_base(own)
    try:
        if "memory" not in (base / "cgroup.controllers").read_text().split():
            raise NoCgroupError(f"{base} does not control memory")
        remove_abandoned(base)
        _enable_memory(base)
    except OSError as error:
        raise NoCgroupError(f"{base} cannot be used: {error.strerror}") from None
    return base


def find_base(own: Path) -> Path:
    """Return the control group that was given to us; that it is writable says nothing for root.

    It is the one we are in, or the one above if systemd or another worker of ours has divided it.
    Raises NoCgroupError.
    """
    if is_delegated(own) or not (own.parent / "cgroup.procs").exists():
        base = own  # without one above, it is the root: of this machine, or of a container
    elif is_delegated(own.parent) or own.name == WORKER_LEAF:
        base = own.parent
    else:
        raise NoCgroupError(f"{own} was not delegated to the worker")
    if not os.access(base / "cgroup.procs", os.W_OK):
        raise NoCgroupError(f"{base} may not be written to")
    return base


def is_delegated(group: Path) -> bool:
    """Whether systemd has marked a control group as somebody else's."""
    return any(_mark(group, name) == b"1" for name in DELEGATION_MARKS)


def _mark(group: Path, name: str) -> bytes:
    try:
        return os.getxattr(group, name)
    except OSError:
        return b""


def _enable_memory(base: Path) -> None:
    control = base / "cgroup.subtree_control"
    if "memory" in control.read_text().split():
        return
    for _ in range(MOVES):
        try:
            control.write_text("+memory")
        except OSError:
            _move_to_leaf(base)
        else:
            return
    control.write_text("+memory")


def _move_to_leaf(base: Path) -> None:
    leaf = base / WORKER_LEAF
    leaf.mkdir(exist_ok=True)
    for pid in (base / "cgroup.procs").read_text().split():
        with contextlib.suppress(OSError):  # it has ended
            (leaf / "cgroup.procs").write_text(pid)


def remove_abandoned(base: Path, now: float | None = None) -> None:
    """Remove the groups that jobs of killed workers have left; one with processes stays."""
    now = time.time() if now is None else now
    for group in base.glob(f"{JOB_PREFIX}*"):
        with contextlib.suppress(OSError):
            if now - group.stat().st_ctime > ABANDONED_SECONDS:
                group.rmdir()


@contextlib.contextmanager
def job_cgroup(base: Path, job_id: str, limit: int) -> Iterator[JobCgroup | None]:
    """Have a control group with a limit in bytes; None if it cannot be made, which is logged."""
    path = base / f"{JOB_PREFIX}{job_id}"
    try:
        path.mkdir()
        (path / "memory.max").write_text(str(limit))
        (path / "memory.oom.group").write_text("1")
        with contextlib.suppress(FileNotFoundError):  # a kernel that does not count swap
            (path / "memory.swap.max").write_text("0")
    except OSError as error:
        logger.warning(
            "The memory limit of a run is kept by watching, since its control group %s could not "
            "be made: %s",
            path,
            error.strerror,
        )
        with contextlib.suppress(OSError):
            path.rmdir()
        yield None
        return
    try:
        yield JobCgroup(path)
    finally:
        with contextlib.suppress(OSError):  # what the flow has left behind is still there
            path.rmdir()
