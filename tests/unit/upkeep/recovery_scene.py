"""What the tests of recovery share."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

from redis import Redis

from dispatcher import planning
from dispatcher.ledger import claims, keys, locks, recovery_memory, rounds
from dispatcher.prefect_api import client, schemas
from dispatcher.reporting import state_reporter
from dispatcher.upkeep import orphan_search, recovery
from tests.unit import ledgers, parts

S = schemas.StateType

RUN = "/flow_runs/{id}"


SET_STATE = "/flow_runs/{id}/set_state"


BULK = "/flow_runs/bulk_set_state"


LIMITS = planning.Limits(lease_seconds=15.0, infra_retries=3)


LONG = 100.0  # seconds untouched, far more than any limit


class RecoveryScene(parts.Scene):
    """A scene with a recover task whose ticks have gone on for long already."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.published: list[claims.NewClaim] = []
        self.sent_to: list[str] = []
        self.seat: planning.Seat | None = planning.Seat("somebody")
        self.alive: set[str] = set()
        self.revoked: list[UUID] = []
        self.told: dict[UUID, str] = {}
        self.on_publish: Callable[[], object] = lambda: None
        self.steady_for(LONG)

    def recoverer(self, **options: Any) -> recovery.Recoverer:
        values: dict[str, Any] = {
            "api": self.api,
            "book": self.book,
            "mutex": locks.Locks(self.redis),
            "seen": self.observations(),
            "prepare": self.preparation(),
            "reporter": state_reporter.Reporter(self.api),
            "publish": self._publish,
            "choose": lambda _run, _pool: self.seat,
            "alive": lambda: self.alive,
            "revoke": self.revoked.append,
            "tell": self.told.__setitem__,
            "limits": LIMITS,
            "turns": rounds.Rounds(self.redis),
            "pools": lambda: [parts.POOL],
        }
        values |= options
        values.setdefault("search", self.search(values["api"]))
        return recovery.Recoverer(**values)

    def search(self, api: client.PrefectClient | None = None) -> orphan_search.OrphanSearch:
        return orphan_search.OrphanSearch(
            api=api or self.api,
            book=self.book,
            seen=self.observations(),
            turns=rounds.Rounds(self.redis),
            pools=lambda: [parts.POOL],
            worker_name=parts.WORKER_NAME,
        )

    def observations(self, redis: Redis | None = None) -> recovery_memory.RecoveryMemory:
        return recovery_memory.RecoveryMemory(
            redis or self.redis,
            patience_seconds=LIMITS.lost_lease_seconds,
            gap_seconds=LIMITS.gap_seconds,
        )

    def tick(self, **options: Any) -> int:
        return self.recoverer(**options).recover()

    def steady_for(self, seconds: float) -> None:
        """Let ticks have gone on without a gap for so long, up to now."""
        now = self.book.now() * 1000
        key = f"{keys.PREFIX}steady"
        self.redis.hset(key, "last", str(int(now)))
        self.redis.hset(key, "since", str(int(now - seconds * 1000)))

    def let_orphans_wait(self, seconds: float = LONG) -> None:
        """Let the runs that had no claim at the last look have had none for so much longer.

        The next look comes for those that are in no pool, too.
        """
        for name in (orphan_search.SCOPE, orphan_search.ADRIFT_SCOPE):
            key = f"{keys.PREFIX}unclaimed:{name}"
            members: Any = self.redis.zrange(key, 0, -1)
            for member in members:
                self.redis.zincrby(key, -seconds * 1000, member)
        rounds.Rounds(self.redis).hasten(orphan_search.ADRIFT_SCOPE)

    def age(self, claim: claims.NewClaim, seconds: float = LONG) -> None:
        ledgers.age(self.redis, claim.flow_run_id, seconds)

    def opened(self, *, granted: bool) -> claims.NewClaim:
        """A claim whose poll went away before it could note what Prefect said."""
        run = self.objects.run(self.deployment)
        claim = claims.NewClaim(run.id, uuid4())
        transition_id = claims.new_transition_id(parts.WORKER_NAME)
        self.book.open([claim], pool=parts.POOL, transition_id=transition_id, slots=1000)
        if granted:
            self.set_pending(run.id, transition_id)
        return claim

    def set_pending(self, run_id: UUID, transition_id: UUID) -> None:
        pending = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=transition_id)
        result = self.quiet_api.set_flow_run_state(run_id, pending)
        assert result.status is schemas.OrchestrationStatus.ACCEPT

    def lost(self, *states: S, claim: claims.NewClaim | None = None) -> claims.NewClaim:
        """A claim whose holder is gone, at a time when its run had gone through these states."""
        claim = claim or self.claim()
        lease = self.book.acquire(claim, owner=f"{parts.WORKER}#1")
        assert isinstance(lease, claims.Lease)
        self.set_state(claim, *states)
        self.age(claim)
        return claim

    def kept(self, claim: claims.NewClaim) -> claims.Claim:
        kept = self.book.get(claim.flow_run_id)
        assert kept is not None
        return kept

    def last_state(self, run_id: UUID) -> schemas.State:
        state = self.quiet_api.read_flow_run(run_id).state
        assert state is not None
        return state

    def _publish(
        self, run: schemas.FlowRun, claim: claims.NewClaim, pool: str, attempt: int, node: str
    ) -> None:
        assert (run.id, pool) == (claim.flow_run_id, parts.POOL)
        assert attempt == self.kept(claim).attempt
        self.on_publish()
        self.published.append(claim)
        self.sent_to.append(node)


def assert_put_back(scene: RecoveryScene, run_id: UUID, *, delay: float) -> None:
    state = scene.last_state(run_id)
    assert (state.type, state.name) == (S.SCHEDULED, "AwaitingRetry")
    due = state.state_details.scheduled_time
    assert due is not None
    assert abs(due - datetime.now(UTC) - timedelta(seconds=delay)) < timedelta(seconds=1.5)


def orphan(
    scene: RecoveryScene, *states: S, worker_name: str = parts.WORKER_NAME, **values: Any
) -> UUID:
    """A run that a dispatcher made Pending and that went on, whose claim is gone."""
    run = scene.objects.run(scene.deployment, **values)
    scene.set_pending(run.id, claims.new_transition_id(worker_name))
    scene.set_state(claims.NewClaim(run.id, uuid4()), *states)
    return run.id
