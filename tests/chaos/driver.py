"""Keeps a dispatcher under load and under fire, then checks what it promises.

Run as ``python -m tests.chaos.driver --help``; ``--rounds 20 --json totals.json`` runs 20 seeds in
a row.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import heapq
import itertools
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from tests import clocks, waiting
from tests.chaos import faults, invariants, pauses, records, workload
from tests.chaos import world as worlds

CACHE = Path(__file__).parents[2] / ".pytest_cache" / "d" / "prefect"
TICK_SECONDS = 0.05
# How many seconds the clocks of some workers are fast.
SKEWS: tuple[dict[str, int], ...] = (
    {},
    {"control": 300},
    {"control": -300},
    {"runs-1": 300},
    {"runs-1": -300},
)
START_VARIABLE = "DISPATCHER_START"
STARTS = ("auto", "warm", "cold")


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
    broker: str = "redis"  # one of BROKERS
    start: str = field(default_factory=lambda: os.environ.get(START_VARIABLE, "auto"))


# How many times as often as usual a broker is struck that the round is about.
OWN_FAULT = 5
BROKERS = ("redis", "rabbitmq", "sentinel")

PROFILES = {
    "short": Profile(seconds=60.0),
    "long": Profile(seconds=1200.0, workers=4, runs_at_once=18),
}


@dataclass
class Report:
    """What happened."""

    seed: int
    injected: Counter[str] = field(default_factory=Counter)
    found: Sequence[records.Record] = ()
    felt: Sequence[pauses.Pause] = ()
    settled_after: float | None = None
    took: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        ended = Counter(record.final for record in self.found)
        executions = Counter(len(record.executions) for record in self.found)
        lines = [
            self.summary(),
            _table("runs by final state", ended),
            _table("runs by number of executions", executions),
            _table("faults", self.injected),
            *self.violations,
        ]
        return "\n".join(lines)

    def summary(self) -> str:
        """The round in one line."""
        settled = "never" if self.settled_after is None else f"{self.settled_after:.0f} s"
        silences = ", ".join(
            f"{state} {total:.1f} s (unexcused {calm:.1f} s)"
            for state, (total, calm) in self.longest_silences().items()
        )
        return (
            f"seed {self.seed}: {len(self.found)} runs, {self.injected.total()} faults, "
            f"{len(self.violations)} violations; settled after {settled}, took {self.took:.0f} s; "
            f"longest silences: {silences or 'none'}"
        )

    def longest_silences(self) -> dict[str, tuple[float, float]]:
        """The longest silence in each state in seconds, and the longest that nothing excuses."""
        longest: dict[str, tuple[float, float]] = {}
        for record in self.found:
            for silence in invariants.silences(record):
                total, calm = longest.get(silence.state.value, (0.0, 0.0))
                longest[silence.state.value] = (
                    max(total, silence.seconds),
                    max(calm, silence.calm_seconds(self.felt)),
                )
        return longest

    def as_json(self) -> dict[str, Any]:
        """The round for programs."""
        return {
            "seed": self.seed,
            "runs": len(self.found),
            "runs_by_state": Counter(record.final for record in self.found),
            "executions": sum(len(record.executions) for record in self.found),
            "faults": self.injected.total(),
            "faults_by_kind": self.injected,
            "violations": self.violations,
            "settled_after_seconds": self.settled_after,
            "took_seconds": round(self.took, 1),
            "longest_silence_seconds": {
                state: {"all": round(total, 1), "unexcused": round(calm, 1)}
                for state, (total, calm) in self.longest_silences().items()
            },
        }


def totals(reports: Sequence[Report], profile: Profile) -> dict[str, Any]:
    """Several rounds for programs."""
    return {
        "profile": dataclasses.asdict(profile),
        "rounds": len(reports),
        "clean_rounds": sum(not report.violations for report in reports),
        "runs": sum(len(report.found) for report in reports),
        "faults": sum(report.injected.total() for report in reports),
        "violations": sum(len(report.violations) for report in reports),
        "each": [report.as_json() for report in reports],
    }


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
            fault: weight * (OWN_FAULT if fault is faults.OF_BROKER.get(profile.broker) else 1)
            for fault, weight in faults.FAULTS.items()
            if (fault in faults.GENTLE or not profile.gentle)
            and not (fault in faults.SAME_HOST and profile.hosts)
            and not (fault in faults.ONE_REDIS and profile.broker == "sentinel")
            and (fault is not faults.restart_broker or profile.broker == "rabbitmq")
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
            self._world.supervise()
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
            since = time.monotonic() - self._started
            with (self._world.directory / "faults.txt").open("a") as file:
                file.write(f"{since:6.1f} s  {time.time():.2f}  {name}\n")
            self.injected[name] += 1
            self._plan(later)


def run(profile: Profile, *, seed: int, directory: Path, cache: Path = CACHE) -> Report:
    """One round of chaos below ``directory``, whose path must be short."""
    report = Report(seed)
    began = time.monotonic()
    try:
        _run(profile, report, directory, cache)
    except Exception as error:  # noqa: BLE001 - such as a process that outlives its worker
        traceback.print_exc()
        report.violations.append(f"the round broke off: {error!r}")
    report.took = time.monotonic() - began
    return report


def _run(profile: Profile, report: Report, directory: Path, cache: Path) -> None:
    dice = random.Random(report.seed)
    on_shutdown = dice.choice(["crash", "reschedule"])
    skews = dice.choice(SKEWS) if clocks.FAKETIME.exists() else {}
    cache.mkdir(parents=True, exist_ok=True)
    with worlds.World(
        directory,
        cache,
        workers=profile.workers,
        on_shutdown=on_shutdown,
        start=profile.start,
        hosts=profile.hosts,
        broker=profile.broker,
        skews=skews,
    ) as world:
        with workload.Workload(
            world,
            seed=report.seed,
            at_once=profile.runs_at_once,
            again_after_shutdown=on_shutdown == "reschedule",
        ) as runs:
            injector = Injector(world, profile, seed=report.seed)
            injector.run(profile.seconds)
            runs.submit_no_more()
            report.settled_after = _settle(world, runs, profile.settle_seconds)
        report.injected = injector.injected
        report.injected.update(runs.interferences)
        report.injected.update({f"clock of {name} {off:+d} s": 1 for name, off in skews.items()})
        report.found = runs.results()
        report.felt = world.pauses
        broken = invariants.violations(report.found, gentle=profile.gentle, felt=world.pauses)
        unsettled = [] if report.settled_after is not None else ["it does not settle"]
        report.violations = unsettled + broken + _left_over(world)
        worlds.signal_all(world.job_processes(), signal.SIGKILL)


def _settle(world: worlds.World, runs: workload.Workload, seconds: float) -> float | None:
    """Wait until nothing is to be done any more; return for how long, ``None`` if it never was."""
    started = time.monotonic()

    def settled() -> bool:
        world.supervise()
        return runs.is_over and not world.job_processes() and not world.stack.ledger.open_claims()

    try:
        waiting.wait_for(settled, seconds=seconds, every=0.5, what="everything settles")
    except AssertionError:
        return None
    return time.monotonic() - started


def _left_over(world: worlds.World) -> list[str]:
    processes = []
    for process in world.job_processes():
        # It may be gone by now.
        with contextlib.suppress(psutil.Error):
            run_id = process.environ().get("PREFECT__FLOW_RUN_ID")
            processes.append(
                f"process {process.pid} of a job is left: {process.cmdline()}, run {run_id}"
            )
    return processes + [f"a claim is left: {claim}" for claim in world.stack.ledger.open_claims()]


def run_rounds(
    profile: Profile, *, seed: int, rounds: int, keep: bool, json_file: Path | None
) -> int:
    """Some rounds with seeds in a row; return how many were not clean.

    The logs of a round that was not clean are kept, with ``keep`` those of every one.
    """
    reports: list[Report] = []
    for number in range(rounds):
        directory = Path(tempfile.mkdtemp(prefix="chaos-"))
        report = run(profile, seed=seed + number, directory=directory)
        reports.append(report)
        print(report if rounds == 1 or report.violations else report.summary(), flush=True)
        if report.violations or keep:
            print(f"logs are in {directory}", flush=True)
        else:
            shutil.rmtree(directory)
        if json_file is not None:
            json_file.write_text(json.dumps(totals(reports, profile), indent=2) + "\n")
    return sum(bool(report.violations) for report in reports)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.driver", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, default="short")
    parser.add_argument("--seed", type=int, help="repeats the choices of an earlier round")
    parser.add_argument("--rounds", type=int, default=1, help="how many, with seeds in a row")
    parser.add_argument("--json", type=Path, metavar="FILE", help="where to write the figures")
    parser.add_argument("--minutes", type=float, help="how long faults are injected")
    parser.add_argument("--workers", type=int, help="how many Celery workers, at least 2")
    parser.add_argument("--keep", action="store_true", help="keep the logs, whatever happens")
    parser.add_argument(
        "--start", choices=STARTS, help="how engines are started, if not as DISPATCHER_START says"
    )
    parser.add_argument(
        "--gentle", action="store_true", help="kill nothing that executes runs: none may crash"
    )
    parser.add_argument(
        "--hosts", action="store_true", help="each worker on a host of its own (needs root)"
    )
    parser.add_argument(
        "--broker",
        choices=BROKERS,
        default="redis",
        help="one Redis, RabbitMQ besides it, or a Redis behind Sentinels",
    )
    options = parser.parse_args()
    seed = random.randrange(10**6) if options.seed is None else options.seed
    chosen = PROFILES[options.profile]
    profile = dataclasses.replace(
        chosen,
        seconds=options.minutes * 60 if options.minutes else chosen.seconds,
        workers=max(options.workers or chosen.workers, 2),
        gentle=options.gentle,
        hosts=options.hosts,
        broker=options.broker,
        start=options.start or chosen.start,
    )
    print(f"seed: {seed}, start: {profile.start}", flush=True)
    broken = run_rounds(
        profile, seed=seed, rounds=options.rounds, keep=options.keep, json_file=options.json
    )
    print(f"{options.rounds - broken} of {options.rounds} rounds are clean")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
