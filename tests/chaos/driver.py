"""Keeps a dispatcher under load and under fire, then checks what it promises.

Run as ``python -m tests.chaos.driver --help``.
"""

from __future__ import annotations

import argparse
import dataclasses
import heapq
import itertools
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from tests import waiting
from tests.chaos import faults, invariants, records, workload
from tests.chaos import world as worlds

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "d" / "prefect"
TICK_SECONDS = 0.05


@dataclass(frozen=True)
class Profile:
    """How hard it is. All times are seconds."""

    seconds: float
    workers: int = 3
    runs_at_once: int = 14
    calm_seconds: tuple[float, float] = (1.0, 6.0)  # between two faults
    settle_seconds: float = 90.0
    gentle: bool = False  # nothing that executes a run is killed
    hosts: bool = False  # each worker on a host of its own


PROFILES = {
    "short": Profile(seconds=75.0),
    "long": Profile(seconds=1200.0, workers=4, runs_at_once=18),
}


@dataclass
class Report:
    """What happened."""

    seed: int
    injected: Counter[str] = field(default_factory=Counter)
    found: Sequence[records.Record] = ()
    settled_after: float | None = None
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ended = Counter(record.final for record in self.found)
        executions = Counter(len(record.executions) for record in self.found)
        settled = "never" if self.settled_after is None else f"{self.settled_after:.0f} s"
        lines = [
            f"seed {self.seed}: {len(self.found)} runs, settled after {settled}",
            _table("runs by final state", ended),
            _table("runs by number of executions", executions),
            _table("faults", self.injected),
            f"longest silences: {self._longest_silences()}",
            f"violations: {len(self.violations)}",
            *self.violations,
        ]
        return "\n".join(lines)

    def _longest_silences(self) -> str:
        longest: dict[str, float] = {}
        for record in self.found:
            for state, seconds in invariants.silences(record):
                longest[state.value] = max(seconds, longest.get(state.value, 0.0))
        return ", ".join(f"{state} {seconds:.1f} s" for state, seconds in longest.items())


def _table(title: str, counts: Counter[str] | Counter[int]) -> str:
    rows: Iterable[tuple[object, int]] = counts.most_common()
    return f"{title}: " + ", ".join(f"{name} {count}" for name, count in rows)


class Injector:
    """Does one thing after the other to a world, and undoes each after a while."""

    def __init__(self, world: worlds.World, profile: Profile, *, seed: int) -> None:
        self._world = world
        self._dice = random.Random(f"faults {seed}")
        self._calm = profile.calm_seconds
        self._faults = {
            fault: weight
            for fault, weight in faults.FAULTS.items()
            if (fault in faults.GENTLE or not profile.gentle)
            and not (fault in faults.SAME_HOST and profile.hosts)
        }
        self._due: list[tuple[float, int, faults.Later]] = []
        self._number = itertools.count()
        self._started = time.monotonic()
        self.injected: Counter[str] = Counter()

    def run(self, seconds: float) -> None:
        """Inject faults for so long, then wait until all of them are undone."""
        end = time.monotonic() + seconds
        next_fault = time.monotonic() + self._dice.uniform(*self._calm)
        while time.monotonic() < end or self._due:
            self._act()
            if next_fault < time.monotonic() < end:
                self._inject()
                next_fault = time.monotonic() + self._dice.uniform(*self._calm)
            time.sleep(TICK_SECONDS)

    def _act(self) -> None:
        while self._due and self._due[0][0] < time.monotonic():
            self._plan(heapq.heappop(self._due)[2].act())

    def _plan(self, later: faults.Later | None) -> None:
        if later is not None:
            when = time.monotonic() + later.seconds
            heapq.heappush(self._due, (when, next(self._number), later))

    def _inject(self) -> None:
        [fault] = self._dice.choices(list(self._faults), list(self._faults.values()))
        later = fault(self._world, self._dice)
        if later is not None:
            name = fault.__name__.replace("_", " ")
            print(
                f"{time.monotonic() - self._started:6.1f} s  {time.time():.2f}  {name}", flush=True
            )
            self.injected[name] += 1
            self._plan(later)


def run(profile: Profile, *, seed: int, directory: Path, cache: Path = CACHE) -> Report:
    """One round of chaos below ``directory``, whose path must be short."""
    report = Report(seed)
    dice = random.Random(seed)
    on_shutdown = dice.choice(["crash", "reschedule"])
    print(f"on shutdown: {on_shutdown}", flush=True)
    cache.mkdir(parents=True, exist_ok=True)
    with worlds.World(
        directory,
        cache,
        workers=profile.workers,
        on_shutdown=on_shutdown,
        hosts=profile.hosts,
    ) as world:
        with workload.Workload(
            world,
            seed=seed,
            at_once=profile.runs_at_once,
            again_after_shutdown=on_shutdown == "reschedule",
        ) as runs:
            injector = Injector(world, profile, seed=seed)
            injector.run(profile.seconds)
            runs.submit_no_more()
            report.settled_after = _settle(world, runs, profile.settle_seconds)
        report.injected = injector.injected
        report.found = runs.results()
        broken = invariants.violations(report.found, gentle=profile.gentle)
        unsettled = [] if report.settled_after is not None else ["it does not settle"]
        report.violations = unsettled + broken + _left_over(world)
        worlds.signal_all(world.job_processes(), signal.SIGKILL)
    return report


def _settle(world: worlds.World, runs: workload.Workload, seconds: float) -> float | None:
    """Wait until nothing is to be done any more; return for how long, ``None`` if it never was."""
    started = time.monotonic()

    def settled() -> bool:
        return runs.is_over and not world.job_processes() and not world.stack.ledger.open_claims()

    try:
        waiting.wait_for(settled, seconds=seconds, every=0.5, what="everything settles")
    except AssertionError:
        return None
    return time.monotonic() - started


def _left_over(world: worlds.World) -> list[str]:
    processes = [
        f"process {process.pid} of a job is left: {process.cmdline()}, "
        f"run {process.environ().get('PREFECT__FLOW_RUN_ID')}"
        for process in world.job_processes()
    ]
    return processes + [f"a claim is left: {claim}" for claim in world.stack.ledger.open_claims()]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.driver", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="short")
    parser.add_argument("--seed", type=int, help="repeats the choices of an earlier round")
    parser.add_argument("--minutes", type=float, help="how long faults are injected")
    parser.add_argument("--workers", type=int, help="how many Celery workers, at least 2")
    parser.add_argument("--keep", action="store_true", help="keep the logs, whatever happens")
    parser.add_argument(
        "--gentle", action="store_true", help="kill nothing that executes runs: none may crash"
    )
    parser.add_argument(
        "--hosts", action="store_true", help="each worker on a host of its own (needs root)"
    )
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    print(f"seed: {seed}", flush=True)
    chosen = PROFILES[options.profile]
    profile = dataclasses.replace(
        chosen,
        seconds=options.minutes * 60 if options.minutes else chosen.seconds,
        workers=max(options.workers or chosen.workers, 2),
        gentle=options.gentle,
        hosts=options.hosts,
    )
    directory = Path(tempfile.mkdtemp(prefix="chaos-"))
    report = run(profile, seed=seed, directory=directory)
    print(report)
    if report.violations or options.keep:
        print(f"logs are in {directory}")
    else:
        shutil.rmtree(directory)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
