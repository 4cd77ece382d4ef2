"""Steps in the life of a claim, shared by the tests of both ledgers."""

from __future__ import annotations

from collections.abc import Callable
from uuid import UUID, uuid4

from dispatcher.ledger import claims

Book = claims.Ledger

POOL = "pool"


MANY = 1000  # slots


def new_claim(flow_run_id: UUID | None = None) -> claims.NewClaim:
    return claims.NewClaim(flow_run_id or uuid4(), uuid4())


def open_claim(book: Book, flow_run_id: UUID | None = None) -> claims.NewClaim:
    claim = new_claim(flow_run_id)
    assert book.open([claim], pool=POOL, transition_id=uuid4(), slots=MANY) == [claim]
    return claim


def acquire(book: Book, claim: claims.NewClaim, owner: str = "a") -> claims.Lease | claims.Refusal:
    return book.acquire(claim, owner=owner)


def hold(book: Book, claim: claims.NewClaim, owner: str = "a") -> claims.Lease:
    lease = acquire(book, claim, owner)
    assert isinstance(lease, claims.Lease)
    return lease


def accept(book: Book, claim: claims.NewClaim) -> bool:
    return bool(book.accept(claim))


def close(book: Book, claim: claims.NewClaim, fence: int | None = None) -> bool:
    return book.close(claim, fence=fence)


def read(book: Book, claim: claims.NewClaim) -> claims.Claim:
    kept = book.get(claim.flow_run_id)
    assert kept is not None
    return kept


def stage(book: Book, claim: claims.NewClaim) -> claims.Stage:
    return read(book, claim).stage


Step = Callable[[Book, claims.NewClaim], object]
