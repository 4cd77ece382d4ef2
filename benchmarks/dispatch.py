"""The dispatcher's ceiling: runs/s from poll to close where neither Prefect nor the job takes time.

A stub answers in place of Prefect, an executor that does nothing stands for the job; poll, claims,
Celery messages, execution and close are the real ones. Next to it, on the same broker and with
the same concurrency: Celery tasks that do nothing. The stub takes CPU time from what is measured;
its share is reported. With --broker-url both have their messages on that broker, such as a RabbitMQ
with an empty virtual host, and the ledger stays in Redis; the broker's own CPU is not counted.
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
import uuid
from collections.abc import Sequence
from typing import Any

from celery import Celery
from kombu import Queue

from benchmarks import bare, contenders, noop_executor, record, sampling, stub_api, summary
from benchmarks import site as sites
from dispatcher.celery_app import tasks
from dispatcher.standalone.component import Component, StopStep

DISPATCHER_DATABASE, BARE_DATABASE = 0, 1
LIMIT_SECONDS = 900.0
SETTLE_SECONDS = 3.0  # what is reported in batches comes after the last run
BARE_READY_SECONDS = 60.0


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the results."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    results = record.Record("dispatch", options, argv)
    with sites.Site() as site:
        measurement = Measurement(site, options, results)
        for repetition in range(options.repetitions):
            for concurrency in options.concurrency:
                tasks_per_second = measurement.bare_celery(repetition, concurrency)
                runs_per_second = measurement.dispatcher(repetition, concurrency)
                share = runs_per_second / tasks_per_second
                results.say(f"with {concurrency} slots {share:.0%} of bare Celery")


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--runs", type=int, default=10_000, help="in each measurement")
    parser.add_argument("--tasks", type=int, default=10_000, help="of bare Celery")
    parser.add_argument("--repetitions", type=int, default=1)
    parser.add_argument(
        "--concurrency", type=int, nargs="+", default=[4, 16], help="slots of the worker"
    )
    parser.add_argument(
        "--broker-url", help="where messages are, if not in the Redis of the ledger"
    )
    parser.add_argument("--warm-up", type=int, default=50, help="runs that are not counted")
    return parser.parse_args(argv)


class Measurement:
    """Both sides on one Redis, one after the other."""

    def __init__(
        self, site: sites.Site, options: argparse.Namespace, results: record.Record
    ) -> None:
        self._site = site
        self._options = options
        self._results = results
        self._redis = site.start_redis()
        self._stub = site.start_stub()
        self._api = site.connect_api(self._stub.api_url)
        self._plugin = contenders.plugin(site, noop_executor.TYPE, noop_executor.ENTRY_POINT)

    def dispatcher(self, repetition: int, concurrency: int) -> float:
        """Take runs through the dispatcher; return runs/s."""
        side = contenders.Dispatcher(
            self._site,
            api_url=self._stub.api_url,
            pool=stub_api.POOL,
            settings=self._plugin,
            broker_url=self._options.broker_url,
            database=DISPATCHER_DATABASE,
        )
        try:
            control = sites.roots([side.start_control()])
            workers = sites.roots(side.start_workers(1, concurrency))
            self._take_through(side, self._options.warm_up)
            figures = self._measured(side, control, workers)
        finally:
            side.stop()
        self._results.add(
            what="dispatcher", repetition=repetition, concurrency=concurrency, **figures
        )
        return float(figures["runs_per_second"])

    def bare_celery(self, repetition: int, concurrency: int) -> float:
        """Take as many tasks that do nothing through Celery; return tasks/s."""
        url = self._site.redis_database(BARE_DATABASE)
        broker = self._options.broker_url or url
        worker = self._site.launch(_bare_worker(self._site, url, broker, concurrency))
        roots = sites.roots([worker])
        with Celery("bare", broker=broker, set_as_current=False) as sender:
            self._send_bare(sender, self._options.warm_up)
            cpu = sampling.cpu_seconds(roots)
            seconds = self._send_bare(sender, self._options.tasks)
            cpu = sampling.cpu_seconds(roots) - cpu
        worker.stop()
        tasks_per_second = summary.rounded(self._options.tasks / seconds)
        self._results.add(
            what="bare Celery",
            repetition=repetition,
            concurrency=concurrency,
            tasks=self._options.tasks,
            seconds=round(seconds, 2),
            tasks_per_second=tasks_per_second,
            worker_cpu_ms_per_task=summary.rounded(1000 * cpu / self._options.tasks),
        )
        return tasks_per_second

    def _measured(
        self, side: contenders.Dispatcher, control: list[int], workers: list[int]
    ) -> dict[str, Any]:
        runs = self._options.runs
        groups = {
            "dispatcher": side.roots,
            "control_worker": control,
            "run_worker": workers,
            "stub": self._stub.roots,
            "redis": sites.roots([self._redis]),
        }
        self._api.transport.request("DELETE", "/stub/requests")
        before = {name: sampling.cpu_seconds(roots) for name, roots in groups.items()}
        with (
            sampling.MemorySampler(lambda: control) as control_memory,
            sampling.MemorySampler(lambda: workers) as worker_memory,
        ):
            seconds = self._take_through(side, runs)
            time.sleep(SETTLE_SECONDS)
        cpu = {name: sampling.cpu_seconds(roots) - before[name] for name, roots in groups.items()}
        requests = self._requests()
        return {
            "runs": runs,
            "seconds": round(seconds, 2),
            "runs_per_second": summary.rounded(runs / seconds),
            "cpu_ms_per_run": {
                name: summary.rounded(1000 * used / runs) for name, used in cpu.items()
            },
            "requests_per_run": summary.rounded(sum(requests.values()) / runs),
            "requests": requests,
            "control_worker_mib": _trend(control_memory.samples),
            "run_worker_mib": _trend(worker_memory.samples),
        }

    def _requests(self) -> dict[str, int]:
        """What was asked of the stub, the most frequent first.

        Raises:
            RuntimeError: the stub had no answer, so that the figures mean nothing.
        """
        counts: dict[str, int] = self._api.transport.request("GET", "/stub/requests")
        if unknown := [route for route in counts if route.startswith(stub_api.UNKNOWN)]:
            raise RuntimeError(f"the stub lacks routes: {unknown}")
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    def _take_through(self, side: contenders.Dispatcher, runs: int) -> float:
        """Make runs due, ask for a poll, and return how many seconds it took to close all."""

        def all_closed() -> bool:
            due: int = self._api.transport.request("GET", "/stub/runs")
            return not due and not side.open_claims()

        with Celery("benchmark", broker=side.broker_url, set_as_current=False) as sender:
            self._api.transport.request("POST", "/stub/runs", json=runs)
            started = time.monotonic()
            # Declared by the workers, on RabbitMQ with arguments that a sender need not know.
            queue: Any = Queue(tasks.CONTROL_QUEUE)
            sender.send_task(tasks.POLL, args=(side.pool,), queue=queue, declare=[])
            sites.wait_for(all_closed, seconds=LIMIT_SECONDS, what=f"{runs} runs are closed")
            return time.monotonic() - started

    def _send_bare(self, sender: Celery, count: int) -> float:
        """Send tasks and a mark behind them, and return how many seconds that took."""
        redis = self._site.connect_redis(BARE_DATABASE)
        redis.delete(bare.MARK)
        started = time.monotonic()
        for _ in range(count):
            sender.send_task(bare.NOOP, args=(str(uuid.uuid4()), str(uuid.uuid4())))
        sender.send_task(bare.MARK)
        sites.wait_for(
            lambda: redis.exists(bare.MARK), seconds=LIMIT_SECONDS, what=f"{count} tasks end"
        )
        return time.monotonic() - started


def _bare_worker(site: sites.Site, redis_url: str, broker_url: str, concurrency: int) -> Component:
    options = ("--loglevel", "WARNING", "--concurrency", str(concurrency))
    return Component(
        name="bare-worker",
        command=(sys.executable, "-m", "celery", "-A", "benchmarks.bare", "worker", *options),
        environment={
            **site.environment,
            bare.REDIS_VARIABLE: redis_url,
            bare.BROKER_VARIABLE: broker_url,
        },
        directory=sites.ROOT,
        is_ready=lambda: True,  # the tasks of the warm-up show that
        ready_seconds=BARE_READY_SECONDS,
        stop=(StopStep(signal.SIGTERM, 20.0),),
    )


def _trend(samples: list[tuple[float, float]]) -> dict[str, Any]:
    """A memory at its start, at its end and at its peak."""
    values = [mib for _, mib in samples]
    return {"first": values[0], "last": values[-1], "peak": max(values), "samples": samples}


if __name__ == "__main__":
    main()
