"""What the fleet is doing right now, from Redis and Prefect, whichever of them answers."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from redis import Redis, RedisError

from dispatcher import errors, planning
from dispatcher.ledger import fleet, keys, last_polls, redis_ledger
from dispatcher.ledger.claims import Claim, Stage
from dispatcher.prefect_api import child_runs, client, schemas

# Prefect renames a run to this once it is due for 15 seconds and nobody has claimed it.
LATE = "Late"
UNCLAIMED_STAGES = (Stage.OPENED, Stage.PENDING)
SLOT_STAGES = (*UNCLAIMED_STAGES, Stage.HELD)
OPEN_STAGES = tuple(stage for stage in Stage if stage is not Stage.CLOSED)


@dataclass(frozen=True)
class WorkQueueStatus:
    """A work queue that is served; ``status`` is Prefect's: READY, NOT_READY or PAUSED."""

    name: str
    priority: int
    status: str | None


@dataclass(frozen=True)
class WorkPoolStatus:
    """A work pool that is served.

    ``type``, ``status`` (READY, NOT_READY or PAUSED) and ``work_queues`` are Prefect's, and
    ``None`` where it could not tell; ``last_poll_seconds`` is the age of the last poll, ``None``
    if there was none or Redis could not tell. ``slots`` are those of the ``workers`` that serve the
    pool, and ``None`` if Redis could not tell; workers that serve several pools count in each.
    """

    name: str
    type: str | None = None
    status: str | None = None
    work_queues: tuple[WorkQueueStatus, ...] | None = None
    last_poll_seconds: float | None = None
    slots: int | None = None
    free_slots: int | None = None
    workers: tuple[str, ...] | None = None


@dataclass(frozen=True)
class WorkerStatus:
    """A Celery worker that is alive; ``used`` of its ``slots`` are taken by runs.

    ``held_up`` says why it takes fewer runs than it could, and is empty if nothing keeps it. It
    executes runs of its ``pools``, ``None`` if its version does not say, and there of the work
    queues of the names ``work_queues``, if there are any.
    """

    name: str
    pid: int
    version: str
    serves_control: bool
    slots: int
    used: int
    held_up: str = ""
    pools: tuple[str, ...] | None = None
    work_queues: tuple[str, ...] = ()
    dropped: int = 0

    def serves(self, pool: str) -> bool:
        """Whether it executes runs of a pool."""
        takes_runs = bool(self.slots or self.held_up)
        return takes_runs and (self.pools is None or pool in self.pools)

    @property
    def free(self) -> int:
        """How many more runs it can execute."""
        return max(self.slots - self.used, 0)


@dataclass(frozen=True)
class HeldRun:
    """A flow run that a worker executes now.

    ``seconds`` counts from when it was claimed. ``memory`` is how many bytes its processes used
    when they were last measured, which takes some seconds the first time; ``None`` until then.
    """

    flow_run_id: UUID
    pool: str
    worker: str
    seconds: float
    memory: int | None


@dataclass(frozen=True)
class WaitingRun:
    """The flow run that has waited longest to be executed.

    ``waits_for`` is ``a claim`` (due in Prefect, no slot was free for it) or ``a worker``
    (claimed, its task not begun). ``seconds`` counts from when it was due, or was claimed.
    """

    flow_run_id: UUID
    name: str | None
    pool: str | None
    waits_for: str
    seconds: float


@dataclass(frozen=True)
class Status:
    """The fleet and its work. What Redis could not tell is ``None``.

    ``claims`` counts the open claims of all pools by stage, which take ``used`` slots. ``problems``
    has one sentence for each part that did not answer or is missing.
    """

    pools: tuple[WorkPoolStatus, ...]
    workers: tuple[WorkerStatus, ...] | None
    claims: Mapping[Stage, int] | None
    oldest_waiting: WaitingRun | None
    problems: tuple[str, ...]
    used: int | None = None
    runs: tuple[HeldRun, ...] | None = None

    @property
    def slots(self) -> int | None:
        """How many runs the fleet executes at once."""
        return None if self.workers is None else sum(worker.slots for worker in self.workers)

    @property
    def free_slots(self) -> int | None:
        """How many more runs the fleet may claim now."""
        if self.slots is None or self.used is None:
            return None
        return planning.free_slots(slots=self.slots, used=self.used)

    def to_json(self) -> dict[str, Any]:
        """The status as JSON values, with the field names of these classes."""
        workers = self.workers
        return {
            "pools": [dataclasses.asdict(pool) for pool in self.pools],
            "workers": None if workers is None else [_worker_json(each) for each in workers],
            "runs": None if self.runs is None else [_run_json(run) for run in self.runs],
            "slots": {"total": self.slots, "free": self.free_slots},
            "claims": None if self.claims is None else {str(k): n for k, n in self.claims.items()},
            "oldest_waiting": _waiting_json(self.oldest_waiting),
            "problems": list(self.problems),
        }


def get_status(
    *,
    api: client.PrefectClient,
    redis: Redis,
    pools: Sequence[str],
    work_queues: Sequence[str] = (),
    prefix: str = keys.PREFIX,
) -> Status:
    """Ask Prefect and Redis about the pools and the fleet that serves them; raises nothing.

    Pools that only other workers serve are shown after those of the arguments, with all queues.
    Nothing is polled, so that looking on does not count as a sign of life of the work queues.
    """
    store = _ask_redis(redis, pools, prefix)
    prefect = _ask_prefect(api, pools, work_queues, further=store.further_pools)
    found = Status(
        used=store.used,
        pools=tuple(
            _with_workers(pool, store.workers, store.poll_ages.get(pool.name))
            for pool in prefect.pools
        ),
        workers=store.workers,
        claims=store.claims,
        runs=store.runs,
        oldest_waiting=_longest(prefect.late, store.unclaimed),
        problems=(*prefect.problems, *store.problems),
    )
    further = _unserved(api, found.pools)
    if store.held and not found.free_slots:
        further += _standstill(api, [*pools, *store.further_pools], store.held)
    return dataclasses.replace(found, problems=(*found.problems, *further))


def _unserved(api: client.PrefectClient, pools: Sequence[WorkPoolStatus]) -> list[str]:
    """Name the pools that have due runs and nobody to execute them."""
    try:
        return [
            f"Work pool {pool.name!r} has due runs and no worker that serves it"
            for pool in pools
            if pool.workers == () and pool.type and _late_run(api, [pool.name], ()) is not None
        ]
    except errors.ApiError:
        return []


def _standstill(
    api: client.PrefectClient, pools: Sequence[str], held: Collection[UUID]
) -> list[str]:
    """Whether all that have a slot may wait for runs that have none."""
    try:
        parents = child_runs.parents_of_waiting(api, held, pools)
    except errors.ApiError:
        return []
    return [planning.standstill(len(held))] if parents >= set(held) else []


@dataclass(frozen=True)
class _FromPrefect:
    pools: tuple[WorkPoolStatus, ...]
    late: WaitingRun | None = None
    problems: tuple[str, ...] = ()


def _with_workers(
    pool: WorkPoolStatus, workers: Sequence[WorkerStatus] | None, poll_age: float | None
) -> WorkPoolStatus:
    if workers is None:
        return dataclasses.replace(pool, last_poll_seconds=poll_age)
    serving = [worker for worker in workers if worker.serves(pool.name)]
    return dataclasses.replace(
        pool,
        last_poll_seconds=poll_age,
        slots=sum(worker.slots for worker in serving),
        free_slots=sum(worker.free for worker in serving),
        workers=tuple(worker.name for worker in serving),
    )


@dataclass(frozen=True)
class _FromRedis:
    poll_ages: Mapping[str, float]
    further_pools: tuple[str, ...] = ()
    workers: tuple[WorkerStatus, ...] | None = None
    claims: Mapping[Stage, int] | None = None
    used: int | None = None
    unclaimed: WaitingRun | None = None
    held: Collection[UUID] = ()
    runs: tuple[HeldRun, ...] | None = None
    problems: tuple[str, ...] = ()


def _ask_prefect(
    api: client.PrefectClient,
    pools: Sequence[str],
    work_queues: Sequence[str],
    *,
    further: Sequence[str],
) -> _FromPrefect:
    queues_of = {**dict.fromkeys(pools, tuple(work_queues)), **dict.fromkeys(further, ())}
    found = {name: WorkPoolStatus(name) for name in queues_of}
    problems: list[str] = []
    late = None
    try:
        for name, queues in queues_of.items():
            try:
                found[name] = _pool(api, name, queues)
            except errors.ObjectNotFound:
                problems.append(f"Work pool {name!r} does not exist")
            problems += _missing_queues(found[name], queues)
        late = _longest(
            _late_run(api, pools, work_queues), _late_run(api, further, ()) if further else None
        )
    except errors.ApiError as error:
        problems.append(f"Prefect API: {error}")
    return _FromPrefect(tuple(found.values()), late, tuple(problems))


def _pool(api: client.PrefectClient, name: str, work_queues: Sequence[str]) -> WorkPoolStatus:
    pool = api.read_work_pool(name)
    queues = tuple(
        WorkQueueStatus(queue.name, queue.priority, queue.status)
        for queue in api.read_work_queues(name)
        if not work_queues or queue.name in work_queues
    )
    status = "PAUSED" if pool.is_paused else pool.status
    return WorkPoolStatus(name, pool.type, status, queues)


def _missing_queues(pool: WorkPoolStatus, work_queues: Sequence[str]) -> list[str]:
    """Name the queues that are to be served but are not there, with which polls fail."""
    if pool.work_queues is None:
        return []
    there = {queue.name for queue in pool.work_queues}
    return [
        f"Work queue {name!r} of work pool {pool.name!r} does not exist"
        for name in work_queues
        if name not in there
    ]


def _late_run(
    api: client.PrefectClient, pools: Sequence[str], work_queues: Sequence[str]
) -> WaitingRun | None:
    late = schemas.FlowRunFilter(
        state_types=[schemas.StateType.SCHEDULED],
        state_names=[LATE],
        work_pool_names=pools,
        work_queue_names=work_queues,
    )
    for run in api.read_flow_runs(late, limit=1, sort="EXPECTED_START_TIME_ASC"):
        due = run.expected_start_time
        seconds = (api.now() - due).total_seconds() if due else 0.0
        return WaitingRun(run.id, run.name, run.work_pool_name, "a claim", max(seconds, 0.0))
    return None


def _ask_redis(redis: Redis, pools: Sequence[str], prefix: str) -> _FromRedis:
    try:
        nodes = fleet.Fleet(redis, prefix=prefix).nodes()
        served = {pool for node in nodes for pool in node.pools or ()}
        further = tuple(sorted(served.difference(pools)))
        ages = last_polls.LastPolls(redis, prefix=prefix).ages([*pools, *further])
        claims = redis_ledger.RedisLedger(redis, prefix=prefix).open_claims()
        seconds, microseconds = redis.time()
    except RedisError as error:
        return _FromRedis({}, problems=(f"Redis: {error}",))
    counts = Counter(claim.stage for claim in claims)
    now = seconds + microseconds / 1_000_000
    return _FromRedis(
        poll_ages=ages,
        further_pools=further,
        workers=_workers(nodes, claims),
        claims={stage: counts[stage] for stage in OPEN_STAGES},
        used=sum(claim.weight for claim in claims if claim.stage in SLOT_STAGES),
        unclaimed=_unclaimed(claims, now=now),
        runs=_runs(claims, now=now),
        held={claim.flow_run_id for claim in claims if claim.stage in SLOT_STAGES},
        problems=() if nodes else ("No worker is alive",),
    )


def _workers(nodes: Sequence[fleet.Node], claims: Sequence[Claim]) -> tuple[WorkerStatus, ...]:
    alive = {node.name for node in nodes}
    used: Counter[str] = Counter()
    for claim in claims:
        if claim.stage in SLOT_STAGES:
            used[claim.meant_for if claim.meant_for in alive else claim.node] += claim.weight
    return tuple(
        WorkerStatus(
            name=node.name,
            pid=node.pid,
            version=node.version,
            serves_control=node.serves_control,
            slots=node.slots,
            used=used[node.name],
            held_up=node.held_up,
            pools=node.pools,
            work_queues=node.work_queues,
            dropped=node.dropped,
        )
        for node in nodes
    )


def _runs(claims: Sequence[Claim], *, now: float) -> tuple[HeldRun, ...]:
    """What is executed, the run that uses most memory first."""
    held = [
        HeldRun(
            claim.flow_run_id,
            claim.pool,
            claim.node,
            max(now - claim.opened_at, 0.0),
            claim.memory,
        )
        for claim in claims
        if claim.stage is Stage.HELD
    ]
    return tuple(sorted(held, key=lambda run: run.memory or 0, reverse=True))


def _unclaimed(claims: Sequence[Claim], *, now: float) -> WaitingRun | None:
    for claim in claims:  # oldest first
        if claim.stage in UNCLAIMED_STAGES:
            seconds = max(now - claim.opened_at, 0.0)
            return WaitingRun(claim.flow_run_id, None, claim.pool, "a worker", seconds)
    return None


def _longest(*waiting: WaitingRun | None) -> WaitingRun | None:
    there = [run for run in waiting if run is not None]
    return max(there, key=lambda run: run.seconds, default=None)


def _worker_json(worker: WorkerStatus) -> dict[str, Any]:
    return {**dataclasses.asdict(worker), "free": worker.free}


def _run_json(run: HeldRun) -> dict[str, Any]:
    return {**dataclasses.asdict(run), "flow_run_id": str(run.flow_run_id)}


def _waiting_json(run: WaitingRun | None) -> dict[str, Any] | None:
    return None if run is None else {**dataclasses.asdict(run), "flow_run_id": str(run.flow_run_id)}
