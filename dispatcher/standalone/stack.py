"""What runs in the stack, in which order, with which environment."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from dispatcher.standalone import celery, environment, errors, prefect, valkey
from dispatcher.standalone.component import Component
from dispatcher.standalone.directory import DataDirectory
from dispatcher.standalone.supervisor import Supervisor

# Beat first, so that nothing new is asked for; then the control worker, so that nobody claims a run
# that the closing run worker would leave behind; the run worker reports its last states to Prefect
# and Redis, so these two come last, and Redis after Prefect for no client to miss it.
STOP_ORDER = (celery.BEAT, celery.CONTROL, celery.RUNS, celery.FLOWER, prefect.NAME, valkey.NAME)

NEEDED_PACKAGES = ("prefect", "flower")


@dataclasses.dataclass(frozen=True)
class Options:
    """What the user may choose; a port that is not given is chosen once and remembered."""

    pools: Sequence[str] = ("default",)
    concurrency: int = os.cpu_count() or 1
    grace_seconds: float = 30.0
    redis_port: int | None = None
    prefect_port: int | None = None
    flower_port: int | None = None


class Stack:
    """The components on one data directory, whose lock the caller holds.

    Raises:
        MissingExtra: something that the stack needs is not installed.
        PortUnusable: a port that was asked for or remembered is in use.
    """

    def __init__(
        self,
        data: DataDirectory,
        options: Options,
        *,
        directory: Path | None = None,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        check_installed()
        self.data = data
        self.options = options
        ports = data.ports
        self.redis_port = ports.choose(valkey.NAME, asked=options.redis_port)
        self.prefect_port = ports.choose(
            prefect.NAME, asked=options.prefect_port, preferred=prefect.PREFERRED_PORT
        )
        self.flower_port = ports.choose(
            celery.FLOWER, asked=options.flower_port, preferred=celery.PREFERRED_FLOWER_PORT
        )
        self._directory = directory or Path.cwd()
        self._environ = os.environ if environ is None else environ

    @property
    def api_url(self) -> str:
        """The address of the Prefect API."""
        return prefect.api_url(self.prefect_port)

    def components(self) -> list[Component]:
        """Describe the processes in start order."""
        common = self._environment()
        own = celery.CeleryProcesses(common, self._directory, common["DISPATCHER_REDIS_URL"])
        return [
            valkey.component(self.data, port=self.redis_port, environment=common),
            prefect.component(self.data.prefect, port=self.prefect_port, environment=common),
            own.control_worker(self._pools_exist),
            own.run_worker(self.options.concurrency, self.options.grace_seconds),
            own.beat(self.data.beat_schedule),
            own.flower(self.flower_port),
        ]

    @contextlib.contextmanager
    def running(
        self, *, report: Callable[[str], None], stop_requests: Callable[[], int]
    ) -> Iterator[Supervisor]:
        """Start everything, and stop it again whatever happens.

        Raises:
            ComponentFailed: a component did not start.
            StopRequested: the user did not want to wait.
        """
        supervisor = Supervisor(
            self.components(), self.data.logs, report=report, stop_requests=stop_requests
        )
        try:
            supervisor.start()
            yield supervisor
        finally:
            supervisor.stop(STOP_ORDER)

    def _pools_exist(self) -> bool:
        return all(prefect.has_work_pool(self.prefect_port, name) for name in self.options.pools)

    def _environment(self) -> dict[str, str]:
        return {
            **environment.own(self._environ),
            "DISPATCHER_REDIS_URL": valkey.url(self.redis_port, self.data.password()),
            "DISPATCHER_WORK_POOLS": ",".join(self.options.pools),
            # The Redis is the stack's own, for all that it has.
            "DISPATCHER_BROKER_URL": "",
            "DISPATCHER_NAMESPACE": "",
            "PREFECT_API_URL": self.api_url,
            "PREFECT_HOME": str(self.data.prefect),
        }


def check_installed() -> None:
    """Check that the programs of the stack are there.

    Raises:
        MissingExtra: one or more are not.
    """
    missing = [name for name in NEEDED_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise errors.MissingExtra(
            f"Not installed: {', '.join(missing)}. "
            "Run: pip install 'celery-flow-dispatcher[standalone]'"
        )
    valkey.find_binary()
