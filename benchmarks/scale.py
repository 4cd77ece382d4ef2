"""What size costs: an idle fleet of more and more workers, a slot in memory, a full ledger.

Idle: a control worker, beat, and workers of one slot each against the stub; requests to the API
and CPU time over a while in which nothing is due. Slots: memory of a worker that executes flows in
all its slots, on a real server, with few and with more slots; the difference is the price of one.
Ledger: its operations one by one, with few and with many open claims.
"""

from __future__ import annotations

import argparse
import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any
from uuid import uuid4

import redis

from benchmarks import contenders, noop_executor, record, sampling, stub_api, summary, workload
from benchmarks import site as sites
from dispatcher.ledger import claims, redis_ledger
from dispatcher.prefect_api import schemas

POOL = "benchmark"
IDLE, SLOTS, LEDGER = "idle", "slots", "ledger"
PARTS = (IDLE, SLOTS, LEDGER)

AT_ONCE = 5  # workers that start at the same time
CALM_SECONDS = 5.0  # after a start
LONG_SECONDS = 300.0  # a flow that fills a slot would last that long
LIMIT_SECONDS = 180.0
FILL_CHUNK = 500
IDLE_DATABASE, SLOTS_DATABASE, LEDGER_DATABASE = 0, 1, 8


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the results."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    results = record.Record("scale", options, argv)
    with sites.Site() as site:
        site.start_redis()
        if LEDGER in options.parts:
            _ledger(site, options, results)
        if IDLE in options.parts:
            _idle(site, options, results)
        if SLOTS in options.parts:
            _slots(site, options, results)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--workers", nargs="+", type=int, default=[1, 10, 50])
    parser.add_argument("--window", type=float, default=20.0, help="seconds of idleness measured")
    parser.add_argument("--slots", nargs="+", type=int, default=[1, 4])
    parser.add_argument("--pools", nargs="+", default=["prefork", "threads"], help="of Celery")
    parser.add_argument("--claims", nargs="+", type=int, default=[10, 10_000])
    parser.add_argument("--calls", type=int, default=300, help="of each ledger operation")
    return parser.parse_args(argv)


# An idle fleet


def _idle(site: sites.Site, options: argparse.Namespace, results: record.Record) -> None:
    stub = site.start_stub()
    api = site.connect_api(stub.api_url)
    plugin = contenders.plugin(site, noop_executor.TYPE, noop_executor.ENTRY_POINT)
    side = contenders.Dispatcher(
        site,
        api_url=stub.api_url,
        pool=stub_api.POOL,
        settings=plugin,
        database=IDLE_DATABASE,
    )
    try:
        side.start_control()
        running = 0
        for workers in options.workers:
            while running < workers:
                running += len(side.start_workers(min(AT_ONCE, workers - running), 1))
            time.sleep(CALM_SECONDS)
            api.transport.request("DELETE", "/stub/requests")
            cpu = sampling.cpu_seconds(side.roots)
            time.sleep(options.window)
            cpu = sampling.cpu_seconds(side.roots) - cpu
            requests: dict[str, int] = api.transport.request("GET", "/stub/requests")
            results.add(
                what=IDLE,
                workers=workers,
                requests_per_minute=summary.rounded(60 * sum(requests.values()) / options.window),
                cpu_percent_of_a_core=summary.rounded(100 * cpu / options.window),
                mib=summary.rounded(sampling.pss_bytes(side.roots) / sampling.MIB),
                requests=requests,
            )
    finally:
        side.stop()


# The price of a slot


def _slots(site: sites.Site, options: argparse.Namespace, results: record.Record) -> None:
    server = site.start_prefect(sites.SQLITE)
    work = workload.Workload(site, server, POOL)
    for pool in options.pools:
        full = {slots: _mib_when_full(site, server, work, pool, slots) for slots in options.slots}
        for slots, mib in full.items():
            results.add(what=SLOTS, pool=pool, slots=slots, run_worker_mib=summary.rounded(mib))
        for (fewer, less), (more, most) in itertools.pairwise(full.items()):
            results.add(
                what="price of a slot",
                pool=pool,
                from_slots=fewer,
                to_slots=more,
                mib_per_slot=summary.rounded((most - less) / (more - fewer)),
            )


def _mib_when_full(
    site: sites.Site,
    server: sites.PrefectServer,
    work: workload.Workload,
    pool: str,
    slots: int,
) -> float:
    site.connect_redis(SLOTS_DATABASE).flushdb()
    side = contenders.Dispatcher(site, api_url=server.api_url, pool=POOL, database=SLOTS_DATABASE)
    try:
        side.start_control()
        worker = side.start_workers(1, slots, pool=pool)
        _fill(work, slots)
        mib = sampling.pss_bytes(sites.roots(worker)) / sampling.MIB
        _empty(work, slots)
    finally:
        side.stop()
    return mib


def _fill(work: workload.Workload, slots: int) -> None:
    """Have a flow in every slot that has begun and waits; before it, each slot had an empty one."""
    empty = work.deploy("empty")
    work.create(empty, slots)
    work.wait_for_end(empty, slots, seconds=LIMIT_SECONDS)
    for run_id in work.create(work.deploy("sleep"), slots, parameters={"seconds": LONG_SECONDS}):
        work.wait_for_state(run_id, schemas.StateType.RUNNING, seconds=LIMIT_SECONDS)
    time.sleep(CALM_SECONDS)


def _empty(work: workload.Workload, slots: int) -> None:
    running = schemas.FlowRunFilter(work_pool_names=[POOL], state_types=[schemas.StateType.RUNNING])
    runs = work.api.read_flow_runs(running)
    for run in runs[:slots]:
        work.objects.propose(run.id, schemas.StateType.CANCELLING)
    for run in runs[:slots]:
        work.wait_for_state(run.id, schemas.StateType.CANCELLED, seconds=LIMIT_SECONDS)


# The ledger


def _ledger(site: sites.Site, options: argparse.Namespace, results: record.Record) -> None:
    client = site.connect_redis(LEDGER_DATABASE)
    for open_claims in options.claims:
        client.flushdb()
        book = redis_ledger.RedisLedger(client)
        _open_many(book, open_claims)
        for operation, milliseconds in _timed_operations(book, client, options.calls):
            results.add(
                what=LEDGER,
                open_claims=open_claims,
                operation=operation,
                milliseconds=summary.describe(milliseconds),
            )
    client.flushdb()


def _open_many(book: redis_ledger.RedisLedger, count: int) -> None:
    made = [_new_claim() for _ in range(count)]
    for start in range(0, count, FILL_CHUNK):
        chunk = made[start : start + FILL_CHUNK]
        opened = book.open(chunk, pool=POOL, transition_id=uuid4(), slots=2 * count + FILL_CHUNK)
        assert len(opened) == len(chunk)


def _timed_operations(
    book: redis_ledger.RedisLedger, client: redis.Redis, calls: int
) -> Iterator[tuple[str, list[float]]]:
    """The way of some claims through the ledger, step by step, and what the ticks read."""
    made = [_new_claim() for _ in range(calls)]
    leases: list[claims.Lease] = []

    def acquire(claim: claims.NewClaim) -> None:
        lease = book.acquire(claim, owner="benchmark#1")
        assert isinstance(lease, claims.Lease)
        leases.append(lease)

    many = 10**6
    yield "PING, for comparison", [_milliseconds(client.ping) for _ in made]
    yield "open", [_timed(_opener(book, many), claim) for claim in made]
    yield "accept", [_timed(book.accept, claim) for claim in made]
    yield "acquire", [_timed(acquire, claim) for claim in made]
    yield "renew", [_timed(book.renew, lease) for lease in leases]
    yield "close", [_timed(_closer(book), lease) for lease in leases]
    few = range(max(3, calls // 50))
    yield "open_run_ids", [_milliseconds(book.open_run_ids) for _ in few]
    yield "open_claims", [_milliseconds(book.open_claims) for _ in few]


def _opener(book: redis_ledger.RedisLedger, slots: int) -> Callable[[claims.NewClaim], Any]:
    return lambda claim: book.open([claim], pool=POOL, transition_id=uuid4(), slots=slots)


def _closer(book: redis_ledger.RedisLedger) -> Callable[[claims.Lease], bool]:
    return lambda lease: book.close(_claim_of(lease), fence=lease.fence)


def _timed(call: Callable[[Any], Any], argument: object) -> float:
    return _milliseconds(lambda: call(argument))


def _milliseconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return 1000 * (time.perf_counter() - started)


def _new_claim() -> claims.NewClaim:
    return claims.NewClaim(uuid4(), uuid4())


def _claim_of(lease: claims.Lease) -> claims.NewClaim:
    return claims.NewClaim(lease.flow_run_id, lease.claim_id)


if __name__ == "__main__":
    main()
