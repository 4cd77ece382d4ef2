"""The dispatcher's own processes in the stack: two workers, beat and Flower."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import socket
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

import redis

from dispatcher.ledger import fleet
from dispatcher.standalone import ports, prefect, readiness, valkey
from dispatcher.standalone.component import Component, StopStep

CONTROL, RUNS, BEAT, FLOWER = "control", "runs", "beat", "flower"
PREFERRED_FLOWER_PORT = 5555  # Flower's own

# One for the ticks, one so that a slow one delays nothing. They mostly wait for answers, so they
# need no processes, which would cost 45 MiB.
CONTROL_SIZE = ("--pool", "threads", "--concurrency", "2")

READY_SECONDS = 60.0
COLD_SECONDS = 15.0  # to stop the runs' processes and report them
TICK_SECONDS = 10.0  # to let a tick of the control worker end


@dataclasses.dataclass(frozen=True)
class CeleryProcesses:
    """What the dispatcher's processes have in common."""

    environment: Mapping[str, str] = dataclasses.field(repr=False)  # carries the Redis password
    directory: Path
    redis_url: str = dataclasses.field(repr=False)

    def control_worker(self, is_serving: Callable[[], bool]) -> Component:
        """Describe the worker that polls, cancels and recovers; ready once ``is_serving``."""
        stop = (StopStep(signal.SIGTERM, TICK_SECONDS), StopStep(signal.SIGQUIT, COLD_SECONDS))
        worker = self._worker(CONTROL, CONTROL_SIZE, stop)
        return dataclasses.replace(worker, is_ready=lambda: worker.is_ready() and is_serving())

    def run_worker(self, concurrency: int, grace_seconds: float) -> Component:
        """Describe the worker that executes the runs.

        Asked to stop, it finishes them for ``grace_seconds``; then it stops them.
        """
        stop = (StopStep(signal.SIGTERM, grace_seconds), StopStep(signal.SIGQUIT, COLD_SECONDS))
        return self._worker(RUNS, ("--concurrency", str(concurrency)), stop)

    def beat(self, schedule: Path) -> Component:
        """Describe beat; it has no port to ask, but it keeps a file once it is at work."""
        return Component(
            name=BEAT,
            command=self._celery("beat", "--loglevel", "INFO", "--schedule", str(schedule)),
            environment=self.environment,
            directory=self.directory,
            prepare=functools.partial(_remove, schedule),
            is_ready=lambda: any(_files(schedule)),
            ready_seconds=READY_SECONDS,
            stop=(StopStep(signal.SIGTERM, 5.0),),
            needs=(valkey.NAME, prefect.NAME),
        )

    def flower(self, port: int) -> Component:
        """Describe Flower. Nobody logs in on the loopback interface, so its API stays closed."""
        options = (f"--address={ports.LOOPBACK}", f"--port={port}")
        return Component(
            name=FLOWER,
            command=self._celery("flower", *options),
            environment=self.environment,
            directory=self.directory,
            is_ready=lambda: readiness.http_answers(port, "/healthcheck"),
            ready_seconds=READY_SECONDS,
            stop=(StopStep(signal.SIGTERM, 3.0),),
            needs=(valkey.NAME,),
            address=f"http://{ports.LOOPBACK}:{port}",
        )

    def _worker(self, name: str, size: tuple[str, ...], stop: tuple[StopStep, ...]) -> Component:
        node = f"{name}@{socket.gethostname()}"
        options = ("--queues", f"dispatcher.{name}", *size)
        return Component(
            name=name,
            command=self._celery("worker", "--loglevel", "INFO", "--hostname", node, *options),
            environment=self.environment,
            directory=self.directory,
            prepare=functools.partial(self._forget, node),
            is_ready=functools.partial(self._reports, node),
            ready_seconds=READY_SECONDS,
            stop=stop,
            needs=(valkey.NAME, prefect.NAME),
        )

    def _reports(self, node: str) -> bool:
        """Whether a worker has signed on to the fleet, which it does once it takes work."""
        try:
            with self._redis() as client:
                return any(each.name == node for each in fleet.Fleet(client).nodes())
        except redis.RedisError:
            return False

    def _forget(self, node: str) -> None:
        """Sign a killed worker off, or its successor would seem to be ready before it is."""
        with contextlib.suppress(redis.RedisError), self._redis() as client:
            workers = fleet.Fleet(client)
            for each in workers.nodes():
                if each.name == node:
                    workers.leave(each.key)

    def _redis(self) -> redis.Redis:
        seconds = readiness.ANSWER_SECONDS
        return redis.Redis.from_url(
            self.redis_url,
            decode_responses=True,
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
        )

    def _celery(self, *arguments: str) -> tuple[str, ...]:
        return (sys.executable, "-m", "celery", "-A", "dispatcher", *arguments)


def _files(schedule: Path) -> list[Path]:
    """Return the files of beat's schedule, whose suffixes depend on the kind of database."""
    return list(schedule.parent.glob(f"{schedule.name}*"))


def _remove(schedule: Path) -> None:
    """Forget when beat last sent what: it matters to schedules of days, not to ones of seconds."""
    for file in _files(schedule):
        file.unlink(missing_ok=True)
