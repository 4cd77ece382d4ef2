"""Polling: the order of its steps, what a claim meets on its way, and what an accident leaves."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
from redis import Redis

from dispatcher import (
    catalog,
    claims,
    errors,
    fleet,
    ledger,
    locks,
    nudges,
    polling,
    polls,
    turns,
)
from dispatcher.api import client, schemas
from dispatcher.testing import prefect_api, prefect_objects
from executors import process

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
        self.known = catalog.Catalog(self.api)

    def set_slots(self, slots: int) -> None:
        self.workers.report(fleet.Node("w", 1, slots, True, "1"), lifetime_seconds=600)

    def runs(self, number: int, **values: Any) -> list[UUID]:
        return [self.objects.run(self.deployment, **values).id for _ in range(number)]

    def poller(self, **options: Any) -> polling.Poller:
        return polling.Poller(
            **{
                "api": self.api,
                "book": self.book,
                "known": self.known,
                "order": turns.Turns(api=self.api, redis=self.redis, known=self.known),
                "workers": self.workers,
                "mutex": locks.Locks(self.redis),
                "calls": self.calls,
                "record": polls.Polls(self.redis),
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


def test_over_one_connection_a_burst_is_claimed_in_the_servers_order(scene: Scene) -> None:
    scene.set_slots(100)
    run_ids = scene.runs(25)
    assert scene.poll() == len(run_ids)
    assert scene.published_ids() == run_ids
    assert scene.asked(BULK) == 25


def test_over_one_connection_a_run_is_published_before_the_next_is_asked_for(scene: Scene) -> None:
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
    assert sorted(scene.published_ids()) == sorted(run_ids)


def test_several_runs_are_claimed_at_once(scene: Scene) -> None:
    scene.runs(2)
    both = threading.Barrier(2, timeout=20)
    for _ in range(2):
        scene.before(BULK, both.wait)
    assert scene.poll(connections=4) == 2


def test_what_goes_wrong_with_one_run_does_not_keep_the_others_from_being_published(
    scene: Scene,
) -> None:
    run_ids = scene.runs(4)
    scene.fail(Kind.REFUSED, BULK, status=500)
    with pytest.raises(errors.ApiResponseError):
        scene.poll(connections=4)
    assert len(scene.published) == 3
    (failed,) = set(run_ids) - set(scene.published_ids())
    assert stage(scene, failed) is claims.Stage.OPENED
    assert_nothing_is_doubled(scene, run_ids)


def test_once_the_api_is_away_no_further_claim_is_begun(scene: Scene) -> None:
    scene.set_slots(100)
    scene.runs(50)
    scene.fail(Kind.REQUEST_LOST, BULK, times=FOR_GOOD)
    with pytest.raises(errors.ApiUnreachable):
        scene.poll(connections=2)
    # Each of the two may have begun another one before it heard of the other's failure.
    assert len(scene.book.open_run_ids()) <= 3


# Taking turns


def claimed_of(scene: Scene, deployment: schemas.Deployment) -> int:
    runs = [scene.quiet_api.read_flow_run(run_id) for run_id in scene.published_ids()]
    return sum(run.deployment_id == deployment.id for run in runs)


def end_one(scene: Scene, run_id: UUID) -> None:
    """The run has been executed, and its slot is free."""
    scene.objects.force(run_id, S.COMPLETED)
    claim = next(claim for claimed, claim, _ in scene.published if claimed == run_id)
    assert scene.book.close(claim)


@pytest.mark.parametrize("slots", [1, 2, 5])
def test_a_long_backlog_of_one_deployment_does_not_block_another(scene: Scene, slots: int) -> None:
    scene.set_slots(slots)
    scene.runs(client.PAGE_LIMIT + 100)
    late = scene.objects.run(scene.objects.deployment(POOL)).id
    poller = scene.poller()
    poller.poll(POOL)
    if late not in scene.published_ids():
        end_one(scene, scene.published_ids()[-1])
        poller.poll(POOL)
    assert late in scene.published_ids()


@pytest.mark.parametrize("slots", [1, 3])
def test_backlogs_are_served_by_turns(scene: Scene, slots: int) -> None:
    scene.set_slots(slots)
    deployments = [scene.deployment, *(scene.objects.deployment(POOL) for _ in range(2))]
    for deployment in deployments:
        for _ in range(30):
            scene.objects.run(deployment)
    poller = scene.poller()
    poller.poll(POOL)
    while len(scene.published) < 30:
        end_one(scene, scene.published_ids()[-slots])
        poller.poll(POOL)
    shares = [claimed_of(scene, deployment) for deployment in deployments]
    assert max(shares) - min(shares) <= 2


def test_turns_do_not_take_slots_from_a_queue_of_higher_priority(scene: Scene) -> None:
    scene.objects.queue(POOL, "urgent", priority=1)
    urgent = scene.objects.deployment(POOL, work_queue_name="urgent")
    scene.runs(5)
    urgent_ids = [scene.objects.run(urgent).id for _ in range(10)]
    scene.set_slots(2)
    poller = scene.poller()
    poller.poll(POOL)
    while len(scene.published) < 10:
        end_one(scene, scene.published_ids()[-2])
        poller.poll(POOL)
    assert sorted(scene.published_ids()) == sorted(urgent_ids)


def test_turns_stay_within_a_queues_limit(scene: Scene) -> None:
    scene.objects.change_queue(POOL, "default", concurrency_limit=2)
    scene.runs(5)
    other = scene.objects.run(scene.objects.deployment(POOL)).id
    poller = scene.poller()
    assert poller.poll(POOL) == 2
    assert poller.poll(POOL) == 0
    assert other in scene.published_ids()


def test_a_deployment_at_its_limit_leaves_the_slots_to_others_in_the_same_poll(
    scene: Scene,
) -> None:
    scene.set_slots(3)
    full = scene.objects.deployment(POOL, concurrency_limit=1)
    for _ in range(20):
        scene.objects.run(full)
    others = scene.runs(2)
    assert scene.poll() == 3
    assert claimed_of(scene, full) == 1
    assert set(others) <= set(scene.published_ids())


@pytest.mark.parametrize("route", ["/work_pools/{pool}/queues/filter", FILTER])
def test_a_server_that_does_not_tell_who_else_waits_is_served_all_the_same(
    scene: Scene, route: str
) -> None:
    scene.set_slots(1)
    first, *_ = scene.runs(5)
    scene.fail(Kind.REFUSED, route, status=404, times=FOR_GOOD)
    assert scene.poll() == 1
    assert scene.published_ids() == [first]


def test_a_look_at_others_costs_nothing_while_there_is_room_for_all(scene: Scene) -> None:
    scene.runs(3)
    assert scene.poll() == 3
    assert scene.asked(FILTER) == 0


def test_a_backlog_costs_at_most_two_requests_more_for_a_poll(scene: Scene) -> None:
    scene.set_slots(1)
    scene.runs(20)
    poller = scene.poller()
    poller.poll(POOL)
    assert scene.asked(FILTER) <= 2
    for _ in range(5):
        before = scene.asked(FILTER)
        end_one(scene, scene.published_ids()[-1])
        poller.poll(POOL)
        assert scene.asked(FILTER) - before <= 2


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
                scene.calls.nudge(POOL)
            scene.redis.set(f"{ledger.PREFIX}lock:{name}", "another poll", nx=True)

    scene.runs(1)
    assert scene.poll(mutex=Overtaken(scene.redis)) == 1
    assert scene.calls.is_waiting(POOL)


def test_endless_nudges_are_left_to_a_new_poll_after_a_while(scene: Scene) -> None:
    scene.set_slots(100)
    scene.runs(1)
    times = iter(range(1000))

    def finish_another_run(_: UUID) -> None:
        scene.runs(1)
        scene.calls.nudge(POOL)

    scene.on_publish = finish_another_run
    claimed = scene.poll(monotonic=lambda: float(next(times)), stay_seconds=10.0)
    assert claimed == 10
    assert scene.asked_for == [POOL]  # by the poll itself, for what is left to do
    assert scene.calls.is_waiting(POOL)


def test_refused_runs_are_passed_over_however_long_that_takes(scene: Scene) -> None:
    scene.set_slots(1)
    hours = iter(range(0, 360_000, 3600))
    limited = scene.objects.deployment(POOL, "limited", concurrency_limit=1)
    for _ in range(2):
        scene.objects.run(limited)
    scene.poll()  # the server counts that run, though its slot is free again
    scene.book.close(scene.published[0][1])
    free = scene.runs(1)
    assert scene.poll(monotonic=lambda: float(next(hours))) == 1
    assert scene.published_ids()[1:] == free


def test_a_poll_that_claimed_waits_a_little_for_runs_that_end(scene: Scene) -> None:
    scene.set_slots(1)
    first, second = scene.runs(2)

    def end(run_id: UUID) -> None:
        if run_id == first:
            threading.Timer(0.05, finish).start()

    def finish() -> None:
        scene.book.close(scene.published[0][1])
        scene.calls.nudge(POOL)

    scene.on_publish = end
    assert scene.poll(linger_seconds=10.0, stay_seconds=0.5) == 2
    assert scene.published_ids() == [first, second]
    assert scene.asked_for == []  # the poll at work has served the nudge


def test_a_poll_that_found_nothing_waits_for_nobody(scene: Scene) -> None:
    started = time.monotonic()
    assert scene.poll(linger_seconds=60.0, stay_seconds=60.0) == 0
    assert time.monotonic() - started < 30


def test_nudges_that_a_poll_cannot_serve_end_its_wait(scene: Scene) -> None:
    scene.set_slots(1)
    scene.runs(2)
    scene.on_publish = lambda _: scene.calls.nudge(POOL)
    assert scene.poll(linger_seconds=0.2, stay_seconds=60.0) == 1
    assert not scene.calls.is_waiting(POOL)


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
