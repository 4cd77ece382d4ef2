"""However many pools have ticks, one of them looks after all, and pools add nothing to its cost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any
from uuid import uuid4

import pytest
from redis import Redis

from dispatcher import planning
from dispatcher.ledger import claims, locks, recovery_memory, redis_ledger, rounds
from dispatcher.prefect_api import client, schemas
from dispatcher.preparation import job_preparation
from dispatcher.reporting import state_reporter
from dispatcher.testing import prefect_api, prefect_objects
from dispatcher.upkeep import cancellation, orphan_search, recovery
from tests import waiting
from tests.unit import ledgers, parts

S = schemas.StateType
LIMITS = planning.Limits(lease_seconds=15.0, infra_retries=3)
POOLS = [f"pool-{number}" for number in range(10)]
LONG = 1000.0  # seconds


class Fleet:
    """The tasks of upkeep for ten pools, or for others."""

    def __init__(
        self,
        prefect: prefect_api.FakePrefect,
        redis: Redis,
        prepare: job_preparation.Preparation,
        *,
        round_seconds: float = 0.0,
        pools: Sequence[str] = POOLS,
    ) -> None:
        self.prefect = prefect
        self.api = prefect.client()
        self.book = redis_ledger.RedisLedger(redis)
        self.objects = prefect_objects.PrefectObjects(self.api)
        self.revoked: list[object] = []
        shared: dict[str, Any] = {"api": self.api, "book": self.book, "mutex": locks.Locks(redis)}
        every: dict[str, Any] = {
            "turns": rounds.Rounds(redis),
            "round_seconds": round_seconds,
        }
        reporter = state_reporter.Reporter(self.api)
        self.canceller = cancellation.Canceller(
            **shared,
            **every,
            queues=lambda: dict.fromkeys(pools, ()),
            reporter=reporter,
            revoke=self.revoked.append,
            kill=self._kill,
        )
        seen = recovery_memory.RecoveryMemory(
            redis, patience_seconds=LIMITS.lost_lease_seconds, gap_seconds=LIMITS.gap_seconds
        )
        self.recoverer = recovery.Recoverer(
            **shared,
            **every,
            pools=lambda: pools,
            seen=seen,
            search=orphan_search.OrphanSearch(
                api=self.api,
                book=self.book,
                seen=seen,
                turns=every["turns"],
                pools=lambda: pools,
                worker_name=parts.WORKER_NAME,
            ),
            prepare=prepare,
            reporter=reporter,
            publish=lambda *_: None,
            choose=lambda *_: planning.Seat("somebody"),
            alive=lambda: (),
            revoke=self.revoked.append,
            tell=lambda *_: None,
            limits=LIMITS,
        )

    def hold(self, pool: str) -> schemas.FlowRun:
        """A run that is Running under a claim."""
        run = self.objects.run(self.objects.deployment(pool))
        claim = claims.NewClaim(run.id, uuid4())
        transition_id = claims.new_transition_id(parts.WORKER_NAME)
        self.book.open([claim], pool=pool, transition_id=transition_id, slots=10_000)
        assert isinstance(self.book.acquire(claim, owner="a#1"), claims.Lease)
        self.objects.force(run.id, S.RUNNING)
        return run

    def _kill(self, _run: schemas.FlowRun, _pool: str) -> None:
        raise AssertionError("everything here has a holder")


@pytest.fixture
def scene(prefect: prefect_api.FakePrefect, redis: Redis) -> Iterator[parts.Scene]:
    made = parts.Scene(prefect, redis)
    yield made
    made.close()


@pytest.fixture
def fleet(prefect: prefect_api.FakePrefect, redis: Redis, scene: parts.Scene) -> Fleet:
    made = Fleet(prefect, redis, scene.preparation())
    for pool in POOLS:
        made.objects.pool(pool)
    return made


def test_a_held_run_is_cancelled_although_its_pool_is_gone(fleet: Fleet) -> None:
    run = fleet.hold(POOLS[3])
    fleet.objects.propose(run.id, S.CANCELLING)
    fleet.api.transport.request("DELETE", "/work_pools/{name}", names={"name": POOLS[3]})

    assert fleet.canceller.cancel() == 1

    kept = fleet.book.get(run.id)
    assert kept is not None
    assert kept.cancel_requested
    assert fleet.revoked == [kept.claim_id]


def test_pools_that_come_to_the_fleet_later_are_looked_after_by_the_same_tasks(
    prefect: prefect_api.FakePrefect, redis: Redis, scene: parts.Scene
) -> None:
    served: list[str] = []
    tasks = Fleet(prefect, redis, scene.preparation(), pools=served)
    tasks.objects.pool("later")
    cancelled = tasks.objects.run(tasks.objects.deployment("later"))
    tasks.objects.force(cancelled.id, S.RUNNING)
    tasks.objects.force(cancelled.id, S.CANCELLING)
    run = tasks.objects.run(tasks.objects.deployment("later"))
    claim = claims.NewClaim(run.id, uuid4())
    tasks.book.open([claim], pool="later", transition_id=uuid4(), slots=1)
    ledgers.age(redis, run.id, LONG)
    # No pools at all would be no filter at all for Prefect.
    served.append("own")
    assert (tasks.canceller.cancel(), tasks.recoverer.recover()) == (0, 0)
    served.append("later")
    assert (tasks.canceller.cancel(), tasks.recoverer.recover()) == (1, 1)


def test_a_round_asks_for_all_pools_and_claims_at_once(fleet: Fleet) -> None:
    runs = [fleet.hold(pool) for pool in POOLS for _ in range(client.PAGE_LIMIT // 10 + 5)]
    chunks = -(-len(runs) // client.PAGE_LIMIT)
    before = fleet.prefect.requests["POST", "/flow_runs/filter"]

    fleet.canceller.cancel()
    fleet.recoverer.recover()

    asked = fleet.prefect.requests["POST", "/flow_runs/filter"] - before
    assert asked <= 2 + 4 * chunks


@pytest.mark.parametrize("task", ["cancel", "recover"])
def test_of_the_ticks_of_many_pools_one_looks_and_a_hastened_one_does_too(
    prefect: prefect_api.FakePrefect, redis: Redis, scene: parts.Scene, task: str
) -> None:
    rare = Fleet(prefect, redis, scene.preparation(), round_seconds=LONG)
    tick = getattr(rare.canceller if task == "cancel" else rare.recoverer, task)
    hasten = (rare.canceller if task == "cancel" else rare.recoverer).hasten

    def asked(times: int) -> int:
        before = prefect.requests["POST", "/flow_runs/filter"]
        for _ in range(times):
            tick()
        return prefect.requests["POST", "/flow_runs/filter"] - before

    assert asked(times=1) > 0
    assert asked(times=5) == 0
    hasten()
    assert asked(times=1) > 0


def test_a_round_may_begin_again_after_its_time(redis: Redis) -> None:
    turns = rounds.Rounds(redis)
    assert turns.begin("r", seconds=0.05)
    assert not turns.begin("r", seconds=0.05)
    assert turns.begin("other", seconds=0.05)
    waiting.wait_for(lambda: turns.begin("r", seconds=0.05), seconds=5, what="a new round")
