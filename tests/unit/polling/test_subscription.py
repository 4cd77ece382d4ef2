"""What is done about events, who listens, and what happens while nobody can."""

from __future__ import annotations

import contextlib
import logging
import queue
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from uuid import UUID

import pytest
from redis import Redis

from dispatcher import errors
from dispatcher.ledger import claims, locks
from dispatcher.polling import subscription
from dispatcher.prefect_api import schemas
from tests import waiting

POOLS = {"a": UUID(int=1), "b": UUID(int=2)}
SOON = 10.0  # seconds


def event(name: str, pool: UUID) -> schemas.Event:
    return schemas.Event(
        occurred=datetime.now(UTC),
        event=f"prefect.flow-run.{name}",
        resource={"prefect.resource.id": "prefect.flow-run.x"},
        related=[
            {
                "prefect.resource.id": f"prefect.work-pool.{pool}",
                "prefect.resource.name": next((n for n in POOLS if POOLS[n] == pool), "other"),
            }
        ],
    )


@dataclass
class Server:
    """A server that tells what it is given; an error is raised in place of an event."""

    said: queue.Queue[schemas.Event | errors.ApiError] = field(default_factory=queue.Queue)
    refusals: list[errors.ApiError] = field(default_factory=list)
    asked_for: list[tuple[set[str], set[str]]] = field(default_factory=list)

    @contextlib.contextmanager
    def open(self, *, names: Sequence[str], resource_ids: Sequence[str]) -> Iterator[Server]:
        self.asked_for.append((set(names), set(resource_ids)))
        if self.refusals:
            raise self.refusals.pop(0)
        yield self

    def receive(self, timeout_seconds: float) -> schemas.Event | None:
        try:
            said = self.said.get(timeout=min(timeout_seconds, 0.05))
        except queue.Empty:
            return None
        if isinstance(said, errors.ApiError):
            raise said
        return said


@dataclass
class Scene:
    redis: Redis
    server: Server = field(default_factory=Server)  # tells of runs that are due
    cancels: Server = field(default_factory=Server)
    held: set[UUID] = field(default_factory=set)
    due: list[str] = field(default_factory=list)
    cancelling: list[str] = field(default_factory=list)
    made: list[subscription.Subscription] = field(default_factory=list)
    pools: dict[str, UUID] = field(default_factory=lambda: dict(POOLS))

    def start(self) -> list[subscription.Subscription]:
        def pools() -> tuple[str, ...]:
            return tuple(POOLS)

        started = [
            subscription.Subscription(
                topic,
                open_stream=server.open,
                pools=pools,
                mutex=locks.Locks(self.redis),
                tell=tell,
            )
            for topic, server, tell in (
                (subscription.DueRuns(pools, self.read_pool), self.server, self.tell_due),
                (
                    subscription.Cancels(pools, self.find_claim),
                    self.cancels,
                    self.cancelling.append,
                ),
            )
        ]
        self.made += started
        for made in started:
            made.start()
        return started

    def tell_due(self, pool: str) -> None:
        self.due.append(pool)

    def find_claim(self, run_id: UUID) -> claims.Claim | None:
        if run_id not in self.held:
            return None
        claim_id = UUID(int=9)
        return claims.Claim(run_id, claim_id, "gone", claim_id, claims.Stage.HELD, 1, 0.0, 0.0)

    def read_pool(self, name: str) -> schemas.WorkPool:
        if name not in self.pools:
            raise errors.ObjectNotFound
        return schemas.WorkPool(id=self.pools[name], name=name, type="process")

    def start_and_hear(self) -> None:
        """Start, and pass over what is said of every pool at first."""
        self.start()
        self.wait_for(due=["a", "b"], cancelling=["a", "b"])
        self.due.clear()
        self.cancelling.clear()

    def wait_for(self, *, due: list[str], cancelling: list[str]) -> None:
        waiting.wait_for(
            lambda: (self.due, self.cancelling) == (due, cancelling),
            seconds=SOON,
            what=f"{due} and {cancelling}, not {self.due} and {self.cancelling}",
        )


@pytest.fixture
def scene(redis: Redis) -> Iterator[Scene]:
    scene = Scene(redis)
    yield scene
    for made in scene.made:
        made.stop()


def test_a_due_run_and_a_cancel_are_told_for_their_pool(scene: Scene) -> None:
    scene.start_and_hear()
    scene.server.said.put(event("Scheduled", POOLS["a"]))
    scene.cancels.said.put(event("Cancelling", POOLS["b"]))
    scene.wait_for(due=["a"], cancelling=["b"])


def test_what_happened_before_there_was_a_connection_is_looked_for(scene: Scene) -> None:
    scene.start()
    scene.wait_for(due=["a", "b"], cancelling=["a", "b"])
    names, resources = scene.server.asked_for[0]
    assert "prefect.flow-run.Scheduled" in names
    assert resources == {f"prefect.work-pool.{pool_id}" for pool_id in POOLS.values()}
    assert scene.cancels.asked_for == [({"prefect.flow-run.Cancelling"}, set())]


def test_a_cancel_is_told_of_a_run_that_is_held_although_its_pool_is_gone(scene: Scene) -> None:
    scene.start_and_hear()
    held, other = UUID(int=7), UUID(int=8)
    scene.held.add(held)
    for run_id in (other, held):
        scene.cancels.said.put(
            schemas.Event(
                occurred=datetime.now(UTC),
                event="prefect.flow-run.Cancelling",
                resource={"prefect.resource.id": f"prefect.flow-run.{run_id}"},
                related=[],
            )
        )
        waiting.wait_for(scene.cancels.said.empty, seconds=SOON, what="it is heard")
        scene.wait_for(due=[], cancelling=["a"] if run_id == held else [])


def test_a_cancel_of_anothers_run_is_nobodys_business(scene: Scene) -> None:
    scene.start_and_hear()
    scene.cancels.said.put(event("Cancelling", UUID(int=99)))
    scene.cancels.said.put(event("Cancelling", POOLS["b"]))
    scene.wait_for(due=[], cancelling=["b"])


def test_a_storm_of_events_is_told_a_few_times(scene: Scene) -> None:
    scene.start_and_hear()
    for _ in range(500):
        scene.server.said.put(event("Scheduled", POOLS["a"]))
    waiting.wait_for(scene.server.said.empty, seconds=SOON, what="all are heard")
    waiting.wait_for(lambda: scene.due, seconds=SOON, what="it is told")
    assert len(scene.due) <= 6
    assert set(scene.due) == {"a"}


def test_one_of_several_listens(scene: Scene) -> None:
    scene.start_and_hear()
    scene.start()
    scene.server.said.put(event("Scheduled", POOLS["a"]))
    scene.wait_for(due=["a"], cancelling=[])
    assert len(scene.server.asked_for) == 1


def test_a_connection_that_broke_is_made_anew(scene: Scene) -> None:
    scene.start_and_hear()
    scene.server.said.put(errors.ApiUnreachable("The connection broke."))
    scene.cancels.said.put(errors.ApiUnreachable("The connection broke."))
    scene.wait_for(due=["a", "b"], cancelling=["a", "b"])
    assert len(scene.server.asked_for) == 2


def test_a_server_without_events_is_mentioned_once(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    scene.server.refusals = [errors.ApiUnreachable("Away."), errors.EventsRefused("None here.")]
    scene.start()
    waiting.wait_for(lambda: not scene.server.refusals, seconds=SOON, what="two attempts")
    assert caplog.messages == ["Away. Until then runs start and stop at the ticks."]
    assert scene.due == []


def test_a_pool_that_is_not_there_yet_is_waited_for_in_silence(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    scene.pools.clear()
    scene.start()
    scene.wait_for(due=[], cancelling=["a", "b"])
    # To ask for the events of no pool would be to ask for those of all.
    assert scene.server.asked_for == []
    scene.pools.update(POOLS)
    scene.wait_for(due=["a", "b"], cancelling=["a", "b"])
    assert caplog.messages == []


def test_a_missing_pool_is_skipped_and_the_others_are_heard(
    scene: Scene, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    del scene.pools["b"]
    scene.start_and_hear()
    assert [ids for _, ids in scene.server.asked_for] == [{f"prefect.work-pool.{POOLS['a']}"}]
    scene.server.said.put(event("Scheduled", POOLS["a"]))
    scene.wait_for(due=["a"], cancelling=[])
    assert caplog.messages == []


def test_a_pool_that_was_missing_is_heard_soon_after_it_was_made(scene: Scene) -> None:
    del scene.pools["b"]
    scene.start_and_hear()
    scene.pools.update(POOLS)
    scene.wait_for(due=["a", "b"], cancelling=[])
    assert [len(ids) for _, ids in scene.server.asked_for] == [1, 2]
    scene.due.clear()
    scene.server.said.put(event("Scheduled", POOLS["b"]))
    scene.wait_for(due=["b"], cancelling=[])


def test_who_stops_lets_another_one_listen(scene: Scene) -> None:
    first = scene.start()
    scene.wait_for(due=["a", "b"], cancelling=["a", "b"])
    for each in first:
        each.stop()
    waiting.wait_for(
        lambda: not scene.redis.keys("*lock:subscription*"), seconds=SOON, what="the lock is free"
    )
    scene.due.clear()
    scene.cancelling.clear()
    scene.start()
    scene.wait_for(due=["a", "b"], cancelling=["a", "b"])


def test_a_fleet_that_cannot_be_told_does_not_end_the_listening(scene: Scene) -> None:
    class Deaf(list[str]):
        def append(self, pool: str) -> None:
            super().append(pool)
            raise errors.DispatcherError

    scene.due = Deaf()
    scene.start_and_hear()
    scene.server.said.put(event("Scheduled", POOLS["b"]))
    scene.wait_for(due=["b"], cancelling=[])
