"""The claim ledger: who may start a flow run, kept in Redis.

Working memory, not truth: the truth about a run is its Prefect state. One hash per flow run; one
index of the claims that use a slot, and one of those whose outcome Prefect does not know yet.
Every operation is one Lua script, so it happens whole or not at all, and each may be repeated
after a lost answer. Times are measured by Redis' clock alone.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence
from functools import cached_property
from typing import Any
from uuid import UUID

from redis import Redis

from dispatcher.ledger import keys as key_names
from dispatcher.ledger import scripts
from dispatcher.ledger.claims import (
    ANYBODY,
    CancelResult,
    Claim,
    Lease,
    NewClaim,
    Refusal,
    Renewal,
    Stage,
    node_of,
)

# How long a closed claim is remembered, to refuse late deliveries of its message.
RETENTION_SECONDS = 3600.0
# How many claims are read at once: Redis answers nobody else meanwhile, for a few milliseconds.
READ_CHUNK = 500
PLACES = "places"


class RedisLedger:
    """The :class:`dispatcher.ledger.claims.Ledger` in Redis (5 or newer) or Valkey."""

    def __init__(
        self,
        redis: Redis,
        *,
        prefix: str = key_names.PREFIX,
        retention_seconds: float = RETENTION_SECONDS,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._index = f"{prefix}open"
        self._unreported = f"{prefix}unreported"
        self._retention = _ms(retention_seconds)

    def open(
        self,
        claims: Sequence[NewClaim],
        *,
        pool: str,
        transition_id: UUID,
        slots: int,
        node: str = ANYBODY,
        weight: int = 1,
    ) -> list[NewClaim]:
        """Open those claims that find free slots of a worker and no open claim on their run."""
        if not claims:
            return []
        keys = [self._index, *(self._key(claim.flow_run_id) for claim in claims)]
        args = [str(slots), pool, str(transition_id), node, str(weight)]
        for claim in claims:
            args += [str(claim.flow_run_id), str(claim.claim_id)]
        opened = set(self._scripts.open(keys, args))
        return [claim for claim in claims if str(claim.flow_run_id) in opened]

    def accept(self, claim: NewClaim) -> int:
        """Note that Prefect accepted Pending; return the attempt, 0 if the claim is closed."""
        return int(self._scripts.accept([self._key(claim.flow_run_id)], [str(claim.claim_id)]))

    def resend(self, claim: NewClaim, *, node: str = ANYBODY) -> bool:
        """Note that a claim's message is sent again; false if it does not wait for its task."""
        keys = [self._index, self._key(claim.flow_run_id)]
        return bool(self._scripts.resend(keys, [str(claim.flow_run_id), str(claim.claim_id), node]))

    def acquire(
        self, claim: NewClaim, *, owner: str, pools: Collection[str] = ()
    ) -> Lease | Refusal:
        """Take the lease."""
        keys = [self._index, self._key(claim.flow_run_id)]
        args = [str(claim.flow_run_id), str(claim.claim_id), owner, node_of(owner), *pools]
        answer = self._scripts.acquire(keys, args)
        if answer[0]:
            return Refusal(answer[0])
        fence, cancel, transition_id, attempt, pool, weight = answer[1:]
        return Lease(
            flow_run_id=claim.flow_run_id,
            claim_id=claim.claim_id,
            pool=pool,
            owner=owner,
            fence=int(fence),
            transition_id=UUID(transition_id),
            attempt=int(attempt),
            cancel_requested=cancel == "1",
            weight=int(weight),
        )

    def renew(self, lease: Lease, *, memory: int | None = None) -> tuple[Renewal, bool]:
        """Renew a lease; the second value tells whether a cancel was asked for."""
        keys = [self._key(lease.flow_run_id)]
        used = "" if memory is None else str(memory)
        args = [str(lease.claim_id), str(lease.fence), used]
        outcome, cancel = self._scripts.renew(keys, args)
        return Renewal(outcome), cancel == "1"

    def restore(self, lease: Lease) -> bool:
        """Bring a lease back into a ledger that has lost it; false if somebody else has one."""
        keys = [self._index, self._key(lease.flow_run_id)]
        args = [
            str(lease.flow_run_id),
            str(lease.claim_id),
            lease.pool,
            str(lease.transition_id),
            str(lease.attempt),
            lease.owner,
            str(lease.fence),
            node_of(lease.owner),
            str(lease.weight),
        ]
        return bool(self._scripts.restore(keys, args))

    def request_cancel(self, flow_run_id: UUID) -> tuple[CancelResult, UUID | None]:
        """Ask the holder to stop, or close a claim that nobody holds."""
        keys = [self._index, self._key(flow_run_id)]
        outcome, claim_id = self._scripts.cancel(keys, [str(flow_run_id), self._retention])
        return CancelResult(outcome), UUID(claim_id) if claim_id else None

    def finish(self, lease: Lease, outcome: str) -> bool:
        """Keep an outcome that Prefect could not be told, and free the slot."""
        args = [str(lease.flow_run_id), str(lease.claim_id), str(lease.fence), outcome]
        return bool(self._scripts.finish(self._keys(lease.flow_run_id), args))

    def close(self, claim: NewClaim, *, fence: int | None = None, failed: bool = False) -> bool:
        """Close a claim; a held or finished one only with its fence."""
        fence_text = "" if fence is None else str(fence)
        args = [
            str(claim.flow_run_id),
            str(claim.claim_id),
            fence_text,
            self._retention,
            "1" if failed else "",
        ]
        return bool(self._scripts.close(self._keys(claim.flow_run_id), args))

    def expire(self, claim: Claim, *, untouched_seconds: float) -> bool:
        """Close a claim that is still as it was read and has been untouched so long."""
        args = [
            str(claim.flow_run_id),
            str(claim.claim_id),
            claim.stage.value,
            str(claim.fence),
            _ms(untouched_seconds),
            self._retention,
        ]
        return bool(self._scripts.expire(self._keys(claim.flow_run_id), args))

    def forfeit(self, claim: NewClaim, *, node: str) -> str | None:
        """Note that a claim's holder on a Celery worker is dead: its lease is over now."""
        keys = [self._key(claim.flow_run_id)]
        return self._scripts.forfeit(keys, [str(claim.claim_id), node]) or None

    def get(self, flow_run_id: UUID) -> Claim | None:
        """Read a claim, open or closed."""
        fields: Any = self._redis.hgetall(self._key(flow_run_id))
        return _claim(fields) if fields else None

    def open_run_ids(self) -> set[UUID]:
        """The runs whose claims use a slot, of every pool."""
        members: Any = self._redis.zrange(self._index, 0, -1)
        return {UUID(member) for member in members}

    def used_slots(self, nodes: Sequence[str]) -> dict[str, int]:
        """How many slots of each worker are taken by claims."""
        return dict(zip(nodes, self._scripts.used([self._index], nodes), strict=True))

    def open_claims(self) -> list[Claim]:
        """Every claim that is not closed, oldest first."""
        indexes: Any = [self._redis.zrange(key, 0, -1) for key in (self._index, self._unreported)]
        keys = [self._key(member) for index in indexes for member in index]
        found: list[Claim] = []
        for start in range(0, len(keys), READ_CHUNK):
            rows = json.loads(self._scripts.read(keys[start : start + READ_CHUNK]))
            found += [_claim(dict(zip(row[::2], row[1::2], strict=True))) for row in rows]
        live = [claim for claim in found if claim.stage is not Stage.CLOSED]
        return sorted(live, key=lambda claim: claim.opened_at)

    def now(self) -> float:
        """The ledger's clock: seconds since the epoch."""
        seconds, microseconds = self._redis.time()
        return seconds + microseconds / 1_000_000

    def _key(self, flow_run_id: UUID | str) -> str:
        return f"{self._prefix}claim:{flow_run_id}"

    def _keys(self, flow_run_id: UUID) -> list[str]:
        return [self._index, self._unreported, self._key(flow_run_id)]

    @cached_property
    def _scripts(self) -> _Scripts:
        return _Scripts(self._redis)


class _Scripts:
    """The Lua scripts that change or read claims."""

    def __init__(self, redis: Redis) -> None:
        self.open = scripts.script(redis, "open", after=PLACES)
        self.accept = scripts.script(redis, "accept")
        self.resend = scripts.script(redis, "resend", after=PLACES)
        self.acquire = scripts.script(redis, "acquire", after=PLACES)
        self.renew = scripts.script(redis, "renew")
        self.restore = scripts.script(redis, "restore", after=PLACES)
        self.cancel = scripts.script(redis, "cancel", after=PLACES)
        self.finish = scripts.script(redis, "finish", after=PLACES)
        self.close = scripts.script(redis, "close", after=PLACES)
        self.expire = scripts.script(redis, "expire", after=PLACES)
        self.used = scripts.script(redis, "used", after=PLACES)
        self.forfeit = scripts.script(redis, "forfeit")
        self.read = scripts.script(redis, "read")


def _ms(seconds: float) -> str:
    return str(int(seconds * 1000))


def _claim(fields: dict[str, str]) -> Claim:
    return Claim(
        flow_run_id=UUID(fields["flow_run_id"]),
        claim_id=UUID(fields["claim_id"]),
        pool=fields["pool"],
        transition_id=UUID(fields["transition_id"]),
        stage=Stage(fields["stage"]),
        attempt=int(fields["attempt"]),
        opened_at=int(fields["opened_at"]) / 1000,
        touched_at=int(fields["touched_at"]) / 1000,
        owner=fields.get("owner", ""),
        fence=int(fields.get("fence", "0")),
        resends=int(fields.get("resends", "0")),
        cancel_requested=fields.get("cancel") == "1",
        outcome=fields.get("outcome", ""),
        meant_for=fields.get("node", ANYBODY),
        weight=int(fields.get("weight", "1")),
        memory=int(fields["memory"]) if "memory" in fields else None,
    )
