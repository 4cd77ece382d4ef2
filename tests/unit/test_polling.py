"""Polling: the order of its steps, what a claim meets on its way, and what an accident leaves."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis import Redis

from dispatcher import catalog, claims, errors, fleet, ledger, locks, nudges, polling, polls
from dispatcher.api import client, schemas
from dispatcher.testing import prefect_api, prefect_objects

S = schemas.StateType
Fault, Kind = prefect_api.Fault, prefect_api.FaultKind

POOL = "pool"
BULK = "/flow_runs/bulk_set_state"
POLL = "/work_pools/{pool}/get_scheduled_flow_runs"
FILTER = "/flow_runs/filter"
SET_STATE = "/flow_runs/{id}/set_state"
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
        self.book = ledger.RedisLedger(self.redis)
        self.workers = fleet.Fleet(self.redis)
        self.calls = nudges.Nudges(self.redis, self.asked_for.append)
        self.api = self.prefect.client(on_request=self._on_request, sleep=lambda _seconds: None)

    def set_slots(self, slots: int) -> None:
        self.workers.report(fleet.Node("w", 1, slots, True, "1"), lifetime_seconds=600)

    def runs(self, number: int, **values: Any) -> list[UUID]:
        return [self.objects.run(self.deployment, **values).id for _ in range(number)]

    def poller(self, **options: Any) -> polling.Poller:
        return polling.Poller(
            **{
                "api": self.api,
                "book": self.book,
                "known": catalog.Catalog(self.api),
                "workers": self.workers,
                "mutex": locks.Locks(self.redis),
                "calls": self.calls,
                "record": polls.Polls(self.redis),
                "publish": self._publish,
                "executor_types": ["process"],
                "worker_name": "fleet",
                **options,
            }
        )

    def poll(self, **options: Any) -> int:
        return self.poller(**options).poll(POOL)

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

    def _publish(self, run: schemas.FlowRun, claim: claims.NewClaim, pool: str) -> None:
        self.on_publish(run.id)
        self.published.append((run.id, claim, pool))


@pytest.fixture
def scene(prefect: prefect_api.FakePrefect, redis: Redis) -> Iterator[Scene]:
    made = Scene(prefect, redis)
    made.set_slots(4)
    yield made
    made.api.transport.close()
    made.quiet_api.transport.close()


def stage(scene: Scene, run_id: UUID) -> claims.Stage | None:
    claim = scene.book.get(run_id)
    return claim.stage if claim else None


# The plain case


def test_a_due_run_is_claimed_in_the_ledger_then_in_prefect_then_published(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    stages = []
    scene.before(BULK, lambda: stages.append(("asking", stage(scene, run_id), scene.state(run_id))))
    scene.on_publish = lambda _: stages.append(
        ("publishing", stage(scene, run_id), scene.state(run_id))
    )
    assert scene.poll() == 1
    assert stages == [
        ("asking", claims.Stage.OPENED, S.SCHEDULED),
        ("publishing", claims.Stage.PENDING, S.PENDING),
    ]
    claim = scene.book.get(run_id)
    assert claim is not None
    assert scene.published == [(run_id, claims.NewClaim(run_id, claim.claim_id), POOL)]


def test_the_pending_state_carries_the_claims_transition_id(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    scene.poll()
    claim, state = scene.book.get(run_id), scene.full_state(run_id)
    assert claim is not None
    assert (state.name, state.state_details.transition_id) == ("Pending", claim.transition_id)
    assert claim.pool == POOL


def test_no_more_runs_are_claimed_than_slots_are_free(scene: Scene) -> None:
    first = scene.runs(3)
    assert scene.poll() == 3
    second = scene.runs(3)
    assert scene.poll() == 1
    assert scene.poll() == 0
    assert scene.published_ids() == [*first, second[0]]
    assert len(scene.book.open_run_ids()) == 4


def test_claims_of_all_pools_share_the_slots(scene: Scene) -> None:
    scene.book.open(
        [claims.NewClaim(uuid4(), uuid4()) for _ in range(3)],
        pool="other",
        transition_id=uuid4(),
        slots=4,
    )
    scene.runs(3)
    assert scene.poll() == 1


def test_the_most_urgent_queue_goes_first(scene: Scene) -> None:
    scene.objects.queue(POOL, "urgent", priority=1)
    scene.set_slots(1)
    scene.runs(1)
    urgent = scene.objects.run(scene.objects.deployment(POOL, work_queue_name="urgent")).id
    scene.poll()
    assert scene.published_ids() == [urgent]


def test_only_the_queues_to_serve_are_polled(scene: Scene) -> None:
    scene.objects.queue(POOL, "mine")
    scene.runs(1)
    mine = scene.objects.run(scene.objects.deployment(POOL, work_queue_name="mine")).id
    assert scene.poll(work_queues=["mine"]) == 1
    assert scene.published_ids() == [mine]


def test_a_queue_that_does_not_exist_is_an_error(scene: Scene) -> None:
    with pytest.raises(errors.ObjectNotFound):
        scene.poll(work_queues=["none"])


def test_runs_are_claimed_ahead_of_their_time_but_not_too_early(scene: Scene) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)

    def run_in(seconds: float) -> UUID:
        due = (now + timedelta(seconds=seconds)).isoformat()
        state = {"type": "SCHEDULED", "state_details": {"scheduled_time": due}}
        return scene.objects.run(scene.deployment, state=state).id

    soon, _later = run_in(9), run_in(11)
    scene.poll(prefetch_seconds=10.0, now=lambda: now)
    assert scene.published_ids() == [soon]


def test_a_run_that_was_made_just_now_is_due(scene: Scene) -> None:
    scene.runs(1)
    assert scene.poll(prefetch_seconds=0.0) == 1


# Nothing to do


def test_a_fleet_without_free_slots_asks_nothing_of_the_api(scene: Scene) -> None:
    scene.set_slots(0)
    scene.runs(1)
    scene.prefect.requests.clear()
    assert scene.poll() == 0
    assert scene.prefect.requests.total() == 0


@pytest.mark.parametrize("pool", ["docker-pool", "no-pool"])
def test_a_pool_of_unknown_type_or_none_at_all_is_left_alone(scene: Scene, pool: str) -> None:
    scene.objects.pool("docker-pool", type="docker")
    scene.objects.run(scene.objects.deployment("docker-pool"))
    assert scene.poller().poll(pool) == 0
    assert scene.asked(POLL) == 0
    assert scene.book.open_run_ids() == set()


def test_when_other_pools_took_the_slots_meanwhile_nothing_is_asked_for(scene: Scene) -> None:
    scene.runs(1)
    others = [claims.NewClaim(uuid4(), uuid4()) for _ in range(4)]
    scene.before(
        POLL,
        lambda: scene.book.open(others, pool="other", transition_id=uuid4(), slots=4) and None,
    )
    assert scene.poll() == 0
    assert scene.asked(BULK) == 0


# Runs that are not to be had


def assert_given_up(scene: Scene, run_id: UUID) -> None:
    """The claim is closed, its slot is free, nothing was sent."""
    assert scene.published == []
    assert stage(scene, run_id) is claims.Stage.CLOSED
    assert scene.book.open_run_ids() == set()


@pytest.mark.parametrize("state_type", [S.COMPLETED, S.FAILED, S.CRASHED, S.CANCELLED, S.RUNNING])
@pytest.mark.parametrize("bulk", [True, False])
def test_a_run_that_went_on_since_the_poll_is_not_brought_back(
    scene: Scene, state_type: S, bulk: bool
) -> None:
    without_bulk(scene, bulk)
    (run_id,) = scene.runs(1)
    scene.before(BULK, lambda: scene.objects.force(run_id, state_type))
    assert scene.poll() == 0
    assert_given_up(scene, run_id)
    assert scene.state(run_id) is state_type


@pytest.mark.parametrize("bulk", [True, False])
def test_a_run_that_another_worker_took_is_left_to_it(scene: Scene, bulk: bool) -> None:
    without_bulk(scene, bulk)
    (run_id,) = scene.runs(1)
    theirs = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=uuid4())
    scene.before(BULK, lambda: scene.quiet_api.set_flow_run_state(run_id, theirs))
    assert scene.poll() == 0
    assert_given_up(scene, run_id)
    details = scene.full_state(run_id).state_details
    assert details.transition_id == theirs.transition_id


@pytest.mark.parametrize("bulk", [True, False])
def test_a_run_that_was_deleted_since_the_poll_is_given_up(scene: Scene, bulk: bool) -> None:
    without_bulk(scene, bulk)
    (run_id,) = scene.runs(1)
    scene.before(BULK, lambda: scene.objects.delete_run(run_id))
    assert scene.poll() == 0
    assert_given_up(scene, run_id)


@pytest.mark.parametrize("bulk", [True, False])
def test_a_run_beyond_its_deployments_limit_frees_its_slot_and_says_why(
    scene: Scene, bulk: bool, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=polling.__name__)
    without_bulk(scene, bulk)
    scene.deployment = scene.objects.deployment(POOL, concurrency_limit=1)
    first, second = scene.runs(2)
    assert scene.poll() == 1
    (started,) = scene.published_ids()
    (refused,) = {first, second} - {started}
    assert stage(scene, refused) is claims.Stage.CLOSED
    assert scene.book.open_run_ids() == {started}
    assert scene.prefect.states(refused)[-1].name == "AwaitingConcurrencySlot"
    assert caplog.messages == [
        f"flow run {refused} was not claimed: Deployment concurrency limit reached."
    ]


def test_a_run_of_a_deployment_with_limit_zero_is_refused(scene: Scene) -> None:
    scene.deployment = scene.objects.deployment(POOL, concurrency_limit=1)
    (run_id,) = scene.runs(1)
    scene.before(BULK, lambda: scene.objects.delete_deployment(scene.deployment.id))
    assert scene.poll() == 0
    assert_given_up(scene, run_id)


def test_a_refused_run_can_be_claimed_by_a_later_poll(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    scene.before(BULK, lambda: scene.objects.force(run_id, S.RUNNING))
    assert scene.poll() == 0
    scene.objects.force(run_id, S.SCHEDULED)
    assert scene.poll() == 1
    claim = scene.book.get(run_id)
    assert claim is not None
    assert claim.attempt == 1  # what was refused is none


def test_a_run_that_waits_long_for_its_deployments_limit_makes_no_attempts(scene: Scene) -> None:
    # Or one lost worker afterwards would count as the last of many.
    scene.deployment = scene.objects.deployment(POOL, concurrency_limit=1)
    scene.runs(2)
    assert scene.poll() == 1
    (started,) = scene.published_ids()
    for _ in range(5):
        scene.poll(now=lambda: datetime.now(UTC) + timedelta(hours=1))
    scene.objects.force(started, S.COMPLETED)
    assert scene.poll(now=lambda: datetime.now(UTC) + timedelta(hours=1)) == 1
    claim = scene.book.get(scene.published_ids()[1])
    assert claim is not None
    assert claim.attempt == 1


# Lost answers and failures


def without_bulk(scene: Scene, bulk: bool) -> None:
    """Make the server an old one, unless ``bulk``; hooks of BULK still run."""
    if not bulk:
        refusal = {"detail": "Method Not Allowed"}
        scene.fail(Kind.REFUSED, BULK, times=FOR_GOOD, status=405, body=refusal)


def test_a_claim_whose_answer_was_lost_is_ours_and_published_once(scene: Scene) -> None:
    run_ids = scene.runs(3)
    scene.fail(Kind.REPLY_LOST, BULK)
    assert scene.poll() == 3
    assert sorted(scene.published_ids()) == sorted(run_ids)
    assert scene.asked(BULK) == 4
    assert {stage(scene, run_id) for run_id in run_ids} == {claims.Stage.PENDING}


def test_a_lost_answer_is_no_reason_to_take_another_workers_run(scene: Scene) -> None:
    mine, theirs = scene.runs(2)
    proposal = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=uuid4())
    scene.before(BULK, lambda: scene.quiet_api.set_flow_run_state(theirs, proposal))
    scene.fail(Kind.REPLY_LOST, BULK)
    assert scene.poll() == 1
    assert scene.published_ids() == [mine]
    assert stage(scene, theirs) is claims.Stage.CLOSED


def test_without_bulk_a_lost_answer_is_recognised_too(scene: Scene) -> None:
    without_bulk(scene, bulk=False)
    run_ids = scene.runs(2)
    scene.fail(Kind.REPLY_LOST, SET_STATE)
    assert scene.poll() == 2
    assert scene.published_ids() == run_ids


def test_an_old_server_is_asked_for_bulk_once(scene: Scene) -> None:
    without_bulk(scene, bulk=False)
    poller = scene.poller()
    scene.runs(1)
    assert poller.poll(POOL) == 1
    scene.runs(1)
    assert poller.poll(POOL) == 1
    assert scene.asked(BULK) == 1


def test_a_claim_that_was_cancelled_while_it_was_asked_for_is_not_published(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    scene.fail(Kind.REPLY_LOST, BULK)
    # Between Pending, which the lost answer told, and the note of it in the ledger.
    scene.before(BULK, lambda: scene.book.request_cancel(run_id), request=2)
    scene.poll()
    assert_given_up(scene, run_id)
    assert scene.state(run_id) is S.PENDING


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


def test_an_api_that_is_away_while_claiming_leaves_an_open_claim_on_a_scheduled_run(
    scene: Scene,
) -> None:
    run_ids = scene.runs(2)
    scene.fail(Kind.REQUEST_LOST, BULK, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll()
    assert scene.published == []
    assert [stage(scene, run_id) for run_id in run_ids] == [claims.Stage.OPENED, None]
    assert [scene.state(run_id) for run_id in run_ids] == [S.SCHEDULED] * 2
    assert_nothing_is_doubled(scene, run_ids)


def test_an_api_that_goes_away_after_claiming_leaves_a_run_that_its_claim_recognises(
    scene: Scene,
) -> None:
    run_ids = scene.runs(1)
    scene.fail(Kind.REPLY_LOST, BULK)
    scene.fail(Kind.REQUEST_LOST, FILTER, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll()
    assert scene.published == []
    for run_id in run_ids:
        claim, state = scene.book.get(run_id), scene.full_state(run_id)
        assert claim is not None
        assert claim.stage is claims.Stage.OPENED
        assert state.state_details.transition_id == claim.transition_id
    assert_nothing_is_doubled(scene, run_ids)


def test_an_api_that_goes_away_between_two_claims_leaves_the_first_published(
    scene: Scene,
) -> None:
    run_ids = scene.runs(4)
    scene.set_slots(100)
    scene.fail(Kind.REQUEST_LOST, BULK, after=1, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll()
    assert scene.published_ids() == run_ids[:1]
    assert [stage(scene, run_id) for run_id in run_ids[1:]] == [claims.Stage.OPENED, None, None]
    assert_nothing_is_doubled(scene, run_ids)


def test_without_bulk_too_a_failure_in_the_middle_leaves_the_first_published(
    scene: Scene,
) -> None:
    without_bulk(scene, bulk=False)
    run_ids = scene.runs(3)
    scene.fail(Kind.REQUEST_LOST, SET_STATE, after=1, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll()
    assert scene.published_ids() == run_ids[:1]
    assert [scene.state(run_id) for run_id in run_ids] == [S.PENDING, S.SCHEDULED, S.SCHEDULED]
    assert [stage(scene, run_id) for run_id in run_ids] == [
        claims.Stage.PENDING,
        claims.Stage.OPENED,
        None,
    ]
    assert_nothing_is_doubled(scene, run_ids)


def test_a_message_that_cannot_be_sent_leaves_accepted_claims(scene: Scene) -> None:
    run_ids = scene.runs(3)

    def fail_at_the_second(_: UUID) -> None:
        if len(scene.published) == 1:
            raise ConnectionError("the broker is away")

    scene.on_publish = fail_at_the_second
    with pytest.raises(ConnectionError):
        scene.poll()
    assert scene.published_ids() == run_ids[:1]
    assert [stage(scene, run_id) for run_id in run_ids] == [
        claims.Stage.PENDING,
        claims.Stage.PENDING,
        None,
    ]
    assert_nothing_is_doubled(scene, run_ids)


def test_the_lock_is_free_after_a_failure(scene: Scene) -> None:
    (run_id,) = scene.runs(1)
    scene.fail(Kind.REFUSED, POLL, status=500)
    with pytest.raises(errors.ApiResponseError):
        scene.poll()
    assert scene.poll() == 1
    assert scene.published_ids() == [run_id]


# Bursts


def test_a_burst_is_claimed_one_by_one_in_the_servers_order(scene: Scene) -> None:
    scene.set_slots(100)
    run_ids = scene.runs(25)
    assert scene.poll() == len(run_ids)
    assert scene.published_ids() == run_ids
    assert scene.asked(BULK) == 25


def test_the_first_run_is_published_before_the_second_is_asked_for(scene: Scene) -> None:
    scene.set_slots(100)
    scene.runs(2)
    seen: list[int] = []
    scene.before(BULK, lambda: seen.append(len(scene.published)))
    scene.before(BULK, lambda: seen.append(len(scene.published)))
    scene.poll()
    assert seen == [0, 1]


def test_a_burst_of_more_runs_than_a_server_shows_at_once_is_claimed_by_one_poll(
    scene: Scene,
) -> None:
    scene.set_slots(1000)
    run_ids = scene.runs(client.PAGE_LIMIT + 15)
    assert scene.poll() == client.PAGE_LIMIT + 15
    assert scene.asked(POLL) == 2
    assert scene.published_ids() == run_ids


# Several polls


@contextmanager
def another_poll(scene: Scene) -> Iterator[None]:
    with locks.Locks(scene.redis).hold(f"poll:{POOL}", lease_seconds=60) as held:
        assert held
        yield


def test_a_poll_beside_another_does_nothing(scene: Scene) -> None:
    scene.runs(1)
    scene.prefect.requests.clear()
    with another_poll(scene):
        assert scene.poll() == 0
    assert scene.prefect.requests.total() == 0
    assert scene.poll() == 1


def test_a_nudge_that_comes_during_a_poll_is_served_by_it(scene: Scene) -> None:
    scene.runs(1)
    later: list[UUID] = []

    def finish_another_run(_: UUID) -> None:
        if not later:
            later.extend(scene.runs(1))
            scene.calls.nudge(POOL)
            assert scene.poll() == 0  # the poll that the nudge sent finds the lock taken

    scene.on_publish = finish_another_run
    assert scene.poll() == 2
    assert scene.published_ids()[1:] == later
    assert not scene.calls.is_waiting(POOL)


def test_a_nudge_from_before_a_poll_makes_it_no_longer(scene: Scene) -> None:
    scene.calls.nudge(POOL)
    scene.poll()
    assert scene.asked(POLL) == 1
    assert not scene.calls.is_waiting(POOL)


def test_a_nudge_is_left_to_another_poll_that_was_quicker_to_the_lock(scene: Scene) -> None:
    class Overtaken(locks.Locks):
        @contextmanager
        def hold(self, name: str, *, lease_seconds: float) -> Iterator[bool]:
            with super().hold(name, lease_seconds=lease_seconds) as held:
                yield held
            scene.redis.set(f"{ledger.PREFIX}lock:{name}", "another poll", nx=True)

    scene.runs(1)
    scene.on_publish = lambda _: scene.calls.nudge(POOL)
    assert scene.poll(mutex=Overtaken(scene.redis)) == 1
    assert scene.calls.is_waiting(POOL)


def test_endless_nudges_are_left_to_a_new_poll_after_a_while(scene: Scene) -> None:
    scene.set_slots(100)
    scene.runs(1)

    def finish_another_run(_: UUID) -> None:
        scene.runs(1)
        scene.calls.nudge(POOL)

    scene.on_publish = finish_another_run
    assert scene.poll() == polling.MAX_ROUNDS
    # The last one is not of a finished run, but hands over what is left to do.
    assert len(scene.asked_for) == polling.MAX_ROUNDS + 1
    assert scene.calls.is_waiting(POOL)


def test_two_pollers_on_two_machines_never_publish_a_run_twice(scene: Scene) -> None:
    # As after a lock that ran out: both work at once.
    scene.set_slots(100)
    run_ids = scene.runs(10)
    no_lock = NoLock(scene.redis)
    scene.before(POLL, lambda: None)
    scene.before(BULK, lambda: scene.poll(mutex=no_lock))
    scene.poll(mutex=no_lock)
    assert sorted(scene.published_ids()) == sorted(run_ids)


class NoLock(locks.Locks):
    """A lock that does not keep anybody out."""

    @contextmanager
    def hold(self, name: str, *, lease_seconds: float) -> Iterator[bool]:
        yield True
