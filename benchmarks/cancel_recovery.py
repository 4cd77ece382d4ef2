"""How long a cancelled run goes on, and how long a run stays lost whose worker was killed.

Cancel: from the proposal of Cancelling, as Prefect's UI makes it, to Cancelled, for a flow that
waits. Recovery: a worker is killed with all its processes (SIGKILL) while it executes two runs of
flows that have begun. One becomes Crashed; the other, whose deployment has the job variable
``infra_retries``, is Running again on a second worker. Prefect's worker is killed likewise, and a
second one is there; how its run stands after a while is noted.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from uuid import UUID

from benchmarks import contenders, record, summary, workload
from benchmarks import site as sites
from dispatcher.prefect_api import schemas
from dispatcher.standalone import process

POOL = "benchmark"
DISPATCHER, PREFECT = "dispatcher", "prefect-worker"
LONG_SECONDS = 600.0  # a flow that is to be stopped would last that long
LIMIT_SECONDS = 180.0
SLOTS = 2

State = schemas.StateType


def main(argv: Sequence[str] | None = None) -> None:
    """Measure and write the results."""
    argv = sys.argv[1:] if argv is None else argv
    options = _options(argv)
    results = record.Record("cancel_recovery", options, argv)
    with sites.Site() as site:
        site.start_redis()
        server = site.start_prefect(options.database)
        work = workload.Workload(site, server, POOL)
        if DISPATCHER in options.contenders:
            _cancel(work, _dispatcher(site, server, 1), DISPATCHER, options.cancels, results)
            _recovery(site, server, work, options.kills, results)
        if PREFECT in options.contenders:
            side = contenders.PrefectWorker(site, api=work.api, pool=POOL)
            _cancel(work, side, PREFECT, options.cancels, results)
            _prefect_recovery(site, work, options.patience, results)


def _options(argv: Sequence[str]) -> argparse.Namespace:
    parser = record.parser(__doc__)
    parser.add_argument("--database", choices=sites.DATABASES, default=sites.POSTGRESQL)
    parser.add_argument(
        "--contenders", nargs="+", choices=(DISPATCHER, PREFECT), default=[DISPATCHER, PREFECT]
    )
    parser.add_argument("--cancels", type=int, default=5)
    parser.add_argument("--kills", type=int, default=3)
    parser.add_argument(
        "--patience", type=float, default=60.0, help="seconds that Prefect's run is watched"
    )
    return parser.parse_args(argv)


def _dispatcher(
    site: sites.Site, server: sites.PrefectServer, database: int
) -> contenders.Dispatcher:
    return contenders.Dispatcher(site, api_url=server.api_url, pool=POOL, database=database)


def _begin(work: workload.Workload, *, infra_retries: int | None = None) -> UUID:
    """Start a run that lasts and wait until it is Running."""
    variables = {} if infra_retries is None else {"infra_retries": infra_retries}
    deployment = work.deploy("sleep", job_variables=variables)
    [run_id] = work.create(deployment, 1, parameters={"seconds": LONG_SECONDS})
    work.wait_for_state(run_id, State.RUNNING, seconds=LIMIT_SECONDS)
    return run_id


def _cancel(
    work: workload.Workload,
    side: contenders.Dispatcher | contenders.PrefectWorker,
    contender: str,
    cancels: int,
    results: record.Record,
) -> None:
    with contenders.serving(side, SLOTS):
        waits = []
        for _ in range(cancels):
            run_id = _begin(work)
            asked = time.time()
            work.objects.propose(run_id, State.CANCELLING)
            work.wait_for_state(run_id, State.CANCELLED, seconds=LIMIT_SECONDS)
            waits.append(work.story(run_id).ended - asked)
        results.add(what="cancel", contender=contender, seconds=summary.describe(waits))


def _recovery(
    site: sites.Site,
    server: sites.PrefectServer,
    work: workload.Workload,
    kills: int,
    results: record.Record,
) -> None:
    crashed, restarted = [], []
    for number in range(kills):
        side = _dispatcher(site, server, 2 + number)
        try:
            side.start_control()
            [doomed] = side.start_workers(1, SLOTS)
            lost, retried = _begin(work), _begin(work, infra_retries=1)
            side.start_workers(1, SLOTS)
            killed = _kill(doomed)
            work.wait_for_state(lost, State.CRASHED, seconds=LIMIT_SECONDS)
            crashed.append(work.story(lost).ended - killed)
            restarted.append(_wait_for_restart(work, retried, killed) - killed)
            work.objects.propose(retried, State.CANCELLING)
            work.wait_for_state(retried, State.CANCELLED, seconds=LIMIT_SECONDS)
        finally:
            side.stop()
    results.add(
        what="recovery",
        contender=DISPATCHER,
        crashed_seconds=summary.describe(crashed),
        running_again_seconds=summary.describe(restarted),
    )


def _wait_for_restart(work: workload.Workload, run_id: UUID, killed: float) -> float:
    """Wait until a run is Running since a later moment than the kill; return when that was."""

    def since() -> list[float]:
        times = work.times(run_id, State.RUNNING)
        return [moment for moment in times if moment > killed]

    return sites.wait_for(since, seconds=LIMIT_SECONDS, what="a run runs again", every=0.2)[0]


def _prefect_recovery(
    site: sites.Site, work: workload.Workload, patience: float, results: record.Record
) -> None:
    doomed = contenders.PrefectWorker(site, api=work.api, pool=POOL)
    other = contenders.PrefectWorker(site, api=work.api, pool=POOL)
    try:
        doomed.start(SLOTS)
        run_id = _begin(work)
        other.start(SLOTS)
        _kill(doomed.processes[0])
        time.sleep(patience)
        state = work.state(run_id)
        results.add(what="recovery", contender=PREFECT, watched_seconds=patience, state=state)
    finally:
        doomed.stop()
        other.stop()


def _kill(doomed: process.Process) -> float:
    """End a worker with all its processes, as the end of its host would; return when."""
    now = time.time()
    doomed.kill()
    return now


if __name__ == "__main__":
    main()
