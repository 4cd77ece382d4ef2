"""End to end: real flows on a real Prefect server, by the dispatcher and by Prefect's worker.

Each repetition starts every contender anew, in alternating order, on the same server, work pool,
deployments and concurrency, with compiled bytecode. A batch of runs is made while the pool is
paused; the clock starts when it is resumed. Runs/s count from the first claim to the last end, so
that the wait for the first poll is no part of them; Scheduled -> Running counts from the moment the
pool is resumed, and includes it. Single runs come one at a time, at random moments, to contenders
that are idle.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import contenders, record, sampling, summary, workload
from benchmarks import site as sites
from dispatcher.prefect_api import schemas

POOL = "benchmark"
EMPTY = "empty"
FLOWS = (EMPTY, "sleep", "pandas")
DISPATCHER, COLD = "dispatcher", "dispatcher-cold"
PREFECT, PREFECT_QUICK = "prefect-worker", "prefect-worker-1s"
SETTINGS: Mapping[str, Mapping[str, str]] = {
    DISPATCHER: {},
    COLD: {"DISPATCHER_START": "cold"},
    PREFECT: {},
    PREFECT_QUICK: {"PREFECT_WORKER_QUERY_SECONDS": "1"},
}

BATCH_SECONDS = 900.0
SETTLE_SECONDS = 3.0  # for processes that outlive their run's last state
MOST_IDLE_SECONDS = 5.0  # before a single run

Side = contenders.Dispatcher | contenders.PrefectWorker


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the results."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    results = record.Record("end_to_end", options, argv)
    results.say("compiling bytecode")
    sites.compile_bytecode()
    with sites.Site() as site:
        site.start_redis()
        for database in options.databases:
            server = site.start_prefect(database)
            Measurement(site, server, options, results).measure()
            for each in reversed(server.processes):
                each.stop()


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument(
        "--databases", nargs="+", choices=sites.DATABASES, default=list(reversed(sites.DATABASES))
    )
    parser.add_argument("--flows", nargs="+", choices=FLOWS, default=list(FLOWS))
    parser.add_argument(
        "--contenders", nargs="+", choices=list(SETTINGS), default=[DISPATCHER, PREFECT]
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"the flow {EMPTY!r} alone on all but the first database",
    )
    parser.add_argument(
        "--extra",
        nargs="*",
        choices=list(SETTINGS),
        default=[],
        help=f"more contenders, for the flow {EMPTY!r} on the first database",
    )
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--concurrency", type=int, default=4)
    parser.add_argument("--runs", type=int, default=60, help="of a flow, for the dispatcher")
    parser.add_argument("--prefect-runs", type=int, default=12, help="for Prefect's worker")
    parser.add_argument("--warm-up", type=int, default=4, help="runs that are not counted")
    parser.add_argument(
        "--singles", type=int, default=0, help="single runs, in the first repetition"
    )
    return parser.parse_args(argv)


class Measurement:
    """All contenders on one server."""

    def __init__(
        self,
        site: sites.Site,
        server: sites.PrefectServer,
        options: argparse.Namespace,
        results: record.Record,
    ) -> None:
        self._site = site
        self._server = server
        self._options = options
        self._results = results
        self._work = workload.Workload(site, server, POOL)
        self._random = random.Random(0)
        self._databases = 0

    def measure(self) -> None:
        """Measure every contender in every repetition."""
        options = self._options
        is_first = self._server.database == options.databases[0]
        everybody = [*options.contenders, *(options.extra if is_first else [])]
        for repetition in range(options.repetitions):
            for contender in everybody if repetition % 2 == 0 else reversed(everybody):
                all_flows = contender in options.contenders and (is_first or not options.quick)
                flows = options.flows if all_flows else [EMPTY]
                side = self._side(contender)
                with contenders.serving(side, options.concurrency):
                    labels = {"contender": contender, "repetition": repetition}
                    self._measure(side, flows, labels)

    def _side(self, contender: str) -> Side:
        settings, api = SETTINGS[contender], self._work.api
        if contender.startswith(PREFECT):
            return contenders.PrefectWorker(self._site, api=api, pool=POOL, settings=settings)
        self._databases += 1
        url, number = self._server.api_url, self._databases % 16
        return contenders.Dispatcher(
            self._site, api_url=url, pool=POOL, settings=settings, database=number
        )

    def _measure(self, side: Side, flows: Sequence[str], labels: Mapping[str, Any]) -> None:
        self._batch(side, EMPTY, self._options.warm_up)
        idle_mib = summary.rounded(sampling.pss_bytes(side.roots) / sampling.MIB)
        runs = self._options.runs
        if isinstance(side, contenders.PrefectWorker):
            runs = self._options.prefect_runs
        labels = {"database": self._server.database, **labels, "idle_mib": idle_mib}
        for flow in flows:
            figures = self._batch(side, flow, runs)
            self._results.add(what="batch", flow=flow, **labels, **figures)
        if labels["repetition"] == 0 and self._options.singles:
            self._results.add(what="singles", flow=EMPTY, **labels, **self._singles())

    def _batch(self, side: Side, flow: str, runs: int) -> dict[str, Any]:
        """Take runs through that are all due at once."""
        work = self._work
        work.pause()
        deployment = work.deploy(flow)
        run_ids = work.create(deployment, runs)
        sides = {"cpu": side.roots, "server_cpu": self._server.roots}
        before = {name: sampling.cpu_seconds(pids) for name, pids in sides.items()}
        machine = sampling.machine_cpu_seconds()
        with sampling.MemorySampler(lambda: side.roots) as memory:
            resumed = work.resume()
            work.wait_for_end(deployment, runs, seconds=BATCH_SECONDS)
            time.sleep(SETTLE_SECONDS)
        machine = sampling.machine_cpu_seconds() - machine
        used = {name: sampling.cpu_seconds(pids) - before[name] for name, pids in sides.items()}
        stories = [work.story(run_id) for run_id in run_ids]
        return {
            "runs": runs,
            "completed": sum(story.end is schemas.StateType.COMPLETED for story in stories),
            **_times(stories, resumed),
            "cpu_seconds_per_run": summary.rounded(used["cpu"] / runs),
            "server_cpu_seconds_per_run": summary.rounded(used["server_cpu"] / runs),
            "machine_cpu_seconds_per_run": summary.rounded(machine / runs),
            "peak_mib": summary.rounded(memory.peak_mib),
        }

    def _singles(self) -> dict[str, Any]:
        """Start one run at a time."""
        work = self._work
        deployment = work.deploy(EMPTY)
        waits = []
        for number in range(self._options.singles):
            time.sleep(self._random.uniform(0, MOST_IDLE_SECONDS))
            created = time.time()
            [run_id] = work.create(deployment, 1)
            work.wait_for_end(deployment, number + 1, seconds=BATCH_SECONDS)
            waits.append(work.story(run_id).running - created)
        return {"scheduled_to_running_seconds": summary.describe(waits)}


def _times(stories: Sequence[workload.Story], resumed: float) -> dict[str, Any]:
    claimed = min(story.pending for story in stories)
    ended = max(story.ended for story in stories)
    started = [story for story in stories if story.running == story.running]
    return {
        "runs_per_second": summary.rounded(len(stories) / (ended - claimed)),
        "seconds_from_due": summary.rounded(ended - resumed),
        "scheduled_to_running_seconds": summary.describe(
            [story.running - resumed for story in started]
        ),
        "pending_to_running_seconds": summary.describe(
            [story.running - story.pending for story in started]
        ),
    }


if __name__ == "__main__":
    main()
