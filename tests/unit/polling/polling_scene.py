"""What the tests of polling share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from redis import Redis

from dispatcher.ledger import (
    claims,
    fleet,
    last_polls,
    locks,
    poll_nudges,
    redis_ledger,
    turns_taken,
)
from dispatcher.polling import fairness, late_runs, places
from dispatcher.polling import poller as polling
from dispatcher.prefect_api import catalog, schemas
from dispatcher.testing import prefect_api, prefect_objects
from executors import process

S = schemas.StateType

Fault, Kind = prefect_api.Fault, prefect_api.FaultKind


POOL = "pool"


BULK = "/flow_runs/bulk_set_state"


POLL = "/work_pools/{pool}/get_scheduled_flow_runs"


FILTER = "/flow_runs/filter"


FOR_GOOD = 10_000  # times


@dataclass
class Scene:
    """A pool, a fleet and a poller; ``hooks`` run before requests to their route are sent."""

    prefect: prefect_api.FakePrefect
    redis: Redis
    hooks: dict[str, list[Callable[[], object]]] = field(default_factory=dict)
    published: list[tuple[UUID, claims.NewClaim, str]] = field(default_factory=list)
    asked_for: list[str] = field(default_factory=list)
    on_publish: Callable[[UUID], None] = lambda _run_id: None

    def __post_init__(self) -> None:
        self.quiet_api = self.prefect.client()
        self.objects = prefect_objects.PrefectObjects(self.quiet_api)
        self.objects.pool(POOL)
        self.deployment = self.objects.deployment(POOL)
        self.book = redis_ledger.RedisLedger(self.redis)
        self.workers = fleet.Fleet(self.redis)
        self.calls = poll_nudges.PollNudges(self.redis, self.asked_for.append)
        self.api = self.prefect.client(on_request=self._on_request, sleep=lambda _seconds: None)
        self.known = catalog.Catalog(self.api)
        self.places = places.Places(self.api, self.known, self.book, self.workers)

    def set_slots(self, slots: int, **values: Any) -> None:
        node = fleet.Node("w", 1, slots, True, "1", pools=(POOL,), **values)
        self.workers.report(node, lifetime_seconds=600)

    def runs(self, number: int, **values: Any) -> list[UUID]:
        return [self.objects.run(self.deployment, **values).id for _ in range(number)]

    def poller(self, **options: Any) -> polling.Poller:
        return polling.Poller(
            **{
                "api": self.api,
                "book": self.book,
                "known": self.known,
                "order": fairness.Turns(
                    api=self.api, taken=turns_taken.TurnsTaken(self.redis), known=self.known
                ),
                "late": late_runs.LateRuns(self.api, self.known),
                "slots": self.places,
                "mutex": locks.Locks(self.redis),
                "calls": self.calls,
                "record": last_polls.LastPolls(self.redis),
                "publish": self._publish,
                "find_executor": {"process": process.ProcessExecutor}.get,
                "worker_name": "fleet",
                "connections": 1,  # so that tests may count on the order
                "linger_seconds": 0.0,
                **options,
            }
        )

    def poll(self, **options: Any) -> int:
        return self.poller(**options).poll(POOL)

    def meant_for(self, run_id: UUID) -> str | None:
        claim = self.book.get(run_id)
        return claim.meant_for if claim else None

    def state(self, run_id: UUID) -> schemas.StateType:
        return self.full_state(run_id).type

    def full_state(self, run_id: UUID) -> schemas.State:
        state = self.quiet_api.read_flow_run(run_id).state
        assert state is not None
        return state

    def published_ids(self) -> list[UUID]:
        return [run_id for run_id, _, _ in self.published]

    def before(self, route: str, hook: Callable[[], object], *, request: int = 1) -> None:
        """Run a hook before the first request (or a later one) to a route."""
        hooks = self.hooks.setdefault(route, [])
        hooks += [lambda: None] * (request - 1) + [hook]

    def fail(self, kind: prefect_api.FaultKind, route: str, **values: Any) -> None:
        self.prefect.faults.append(Fault(kind, route=route, **values))

    def asked(self, route: str) -> int:
        return sum(count for (_, path), count in self.prefect.requests.items() if path == route)

    def _on_request(self, _method: str, route: str) -> None:
        if self.hooks.get(route):
            self.hooks[route].pop(0)()

    def _publish(
        self, run: schemas.FlowRun, claim: claims.NewClaim, pool: str, attempt: int, node: str
    ) -> None:
        assert attempt
        assert self.meant_for(run.id) == node
        self.on_publish(run.id)
        self.published.append((run.id, claim, pool))


def stage(scene: Scene, run_id: UUID) -> claims.Stage | None:
    claim = scene.book.get(run_id)
    return claim.stage if claim else None


def assert_given_up(scene: Scene, run_id: UUID) -> None:
    """The claim is closed, its slot is free, nothing was sent."""
    assert scene.published == []
    assert stage(scene, run_id) is claims.Stage.CLOSED
    assert scene.book.open_run_ids() == set()


def without_bulk(scene: Scene, bulk: bool) -> None:
    """Make the server an old one, unless ``bulk``; hooks of BULK still run."""
    if not bulk:
        refusal = {"detail": "Method Not Allowed"}
        scene.fail(Kind.REFUSED, BULK, times=FOR_GOOD, status=405, body=refusal)


def assert_nothing_is_doubled(scene: Scene, run_ids: list[UUID]) -> None:
    """However often the poll is repeated, what its accident left is not claimed again."""
    scene.prefect.faults.clear()
    scene.on_publish = lambda _: None
    scene.set_slots(100)
    left = {claim.flow_run_id: claim.claim_id for claim in scene.book.open_claims()}
    published = set(scene.published_ids())
    untouched = [run_id for run_id in run_ids if run_id not in left]
    assert scene.poll() == len(untouched)
    for _ in range(2):
        assert scene.poll() == 0
    assert sorted(scene.published_ids()) == sorted([*published, *untouched])
    for claim in scene.book.open_claims():
        assert claim.attempt == 1
        assert left.get(claim.flow_run_id, claim.claim_id) == claim.claim_id
    for run_id in run_ids:
        assert [state.type for state in scene.prefect.states(run_id)].count(S.PENDING) <= 1
