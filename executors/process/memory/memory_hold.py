"""Holding one job to its memory limit, by whatever means there are, and knowing what it uses."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import psutil

from executors import memory_limits
from executors.process.memory import cgroups, watching


class MemoryHold:
    """What a job is held by: its control group if it has one, else its watch."""

    def __init__(self, limit: int | None, cgroup: cgroups.JobCgroup | None) -> None:
        self._limit = limit
        self._cgroup = cgroup
        self._watch: watching.Watch | None = None

    @property
    def used(self) -> int | None:
        """The bytes that the job used when they were last measured."""
        return self._watch.used if self._watch else None

    @property
    def cgroup(self) -> Path | None:
        """The control group that the job's first process has to join."""
        return self._cgroup.path if self._cgroup else None

    @contextlib.contextmanager
    def watching(
        self, members: Callable[[], Iterable[psutil.Process]], kill: Callable[[], None]
    ) -> Iterator[None]:
        """Watch the job's processes for as long as the block lasts; measured they are anyway."""
        self._watch = watching.Watch(None if self._cgroup else self._limit, members, kill)
        with self._watch:
            yield

    def explain(self) -> str | None:
        """Say that the job was killed for its memory, if it was. To be asked within the hold."""
        held_by = self._cgroup or self._watch
        if self._limit is None or held_by is None or not held_by.is_exceeded:
            return None
        return memory_limits.describe_excess(self._limit, held_by.peak)


@contextlib.contextmanager
def holding(
    limit: int | None, job_id: str, environ: Mapping[str, str] = os.environ
) -> Iterator[MemoryHold]:
    """Have what a job is to be started with. ``environ`` is where the worker has put the place."""
    base = environ.get(cgroups.BASE_VARIABLE)
    if limit is None or not base:
        yield MemoryHold(limit, None)
        return
    with cgroups.job_cgroup(Path(base), job_id, limit) as cgroup:
        yield MemoryHold(limit, cgroup)
