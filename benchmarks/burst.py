"""A burst: many runs fall due at once, and every slot is free.

How long until all are claimed and their messages sent, and what that does to the memory of the
control worker. No worker executes here: the slots are only reported, and the messages stay in
their queue. Measured against the stub, which shows the dispatcher's own share, and against real
servers, where most of the time is theirs.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence

from celery import Celery

from benchmarks import contenders, noop_executor, record, sampling, stub_api, summary, workload
from benchmarks import site as sites
from dispatcher.celery_app import tasks
from dispatcher.ledger import fleet

POOL = "benchmark"
STUB = "stub"
LIMIT_SECONDS = 600.0
FLEET_SECONDS = 3600.0
SAMPLE_SECONDS = 0.5


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the results."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    results = record.Record("burst", options, argv)
    with sites.Site() as site:
        site.start_redis()
        for number, kind in enumerate(options.servers):
            if kind == STUB:
                _on_stub(site, options.runs, number, results)
            else:
                _on_server(site, kind, options.runs, number, results)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = record.parser(__doc__)
    servers = (STUB, *sites.DATABASES)
    parser.add_argument("--servers", nargs="+", choices=servers, default=list(servers))
    parser.add_argument("--runs", type=int, default=1000)
    return parser.parse_args(argv)


def _on_stub(site: sites.Site, runs: int, number: int, results: record.Record) -> None:
    server = site.start_stub()
    api = site.connect_api(server.api_url)
    plugin = contenders.plugin(site, noop_executor.TYPE, noop_executor.ENTRY_POINT)
    side = contenders.Dispatcher(
        site, api_url=server.api_url, pool=stub_api.POOL, settings=plugin, database=number
    )

    def begin() -> None:
        api.transport.request("POST", "/stub/runs", json=runs)

    _measure(side, server, runs, begin, results)


def _on_server(
    site: sites.Site, database: str, runs: int, number: int, results: record.Record
) -> None:
    server = site.start_prefect(database)
    work = workload.Workload(site, server, POOL)
    side = contenders.Dispatcher(site, api_url=server.api_url, pool=POOL, database=number)
    work.pause()
    results.say(f"making {runs} runs on {database}")
    work.create(work.deploy("empty"), runs)
    _measure(side, server, runs, lambda: _void(work.resume()), results)
    for each in reversed(server.processes):
        each.stop()


def _measure(
    side: contenders.Dispatcher,
    server: sites.PrefectServer,
    runs: int,
    begin: Callable[[], None],
    results: record.Record,
) -> None:
    """Claim all; a poll is asked for at once, as it would be by a run that ends."""
    try:
        control = side.start_control()
        _report_slots(side, runs)
        sender = Celery("benchmark", broker=side.redis_url, set_as_current=False)
        cpu = sampling.cpu_seconds(side.roots)
        roots = sites.roots([control])
        with sampling.MemorySampler(lambda: roots, interval_seconds=SAMPLE_SECONDS) as memory:
            begin()
            started = time.monotonic()
            sender.send_task(tasks.POLL, args=(side.pool,), queue=tasks.CONTROL_QUEUE)
            first = _wait_for_messages(side, 1) - started
            seconds = _wait_for_messages(side, runs) - started
        cpu = sampling.cpu_seconds(side.roots) - cpu
        sender.close()
        results.add(
            server=server.database,
            runs=runs,
            first_claim_seconds=summary.rounded(first),
            all_claimed_seconds=summary.rounded(seconds),
            claims_per_second=summary.rounded(runs / seconds),
            cpu_ms_per_claim=summary.rounded(1000 * cpu / runs),
            control_worker_mib={
                "before": memory.samples[0][1],
                "peak": memory.peak_mib,
                "after": memory.samples[-1][1],
            },
        )
    finally:
        side.stop()


def _report_slots(side: contenders.Dispatcher, slots: int) -> None:
    """Have a worker in the fleet that is not there."""
    node = fleet.Node("roomy@benchmark", os.getpid(), slots, serves_control=False, version="")
    side.fleet.report(node, lifetime_seconds=FLEET_SECONDS)


def _wait_for_messages(side: contenders.Dispatcher, count: int) -> float:
    """Wait until so many claimed runs were sent; return when that was."""
    sites.wait_for(
        lambda: side.messages() >= count, seconds=LIMIT_SECONDS, what=f"{count} runs are claimed"
    )
    return time.monotonic()


def _void(_: object) -> None:
    """Drop a result."""


if __name__ == "__main__":
    main()
