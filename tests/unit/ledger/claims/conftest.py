"""Fixtures of the tests in this room."""

from __future__ import annotations

import pytest

from dispatcher.ledger import claims
from tests.unit import ledgers

Book = claims.Ledger


@pytest.fixture(params=["redis", "memory"])
def kit(request: pytest.FixtureRequest) -> ledgers.LedgerKit:
    """A ledger, empty at first, with what tests do behind its back."""
    if request.param == "memory":
        return ledgers.InMemoryKit()
    return ledgers.RedisKit(request.getfixturevalue("redis"))


@pytest.fixture
def book(kit: ledgers.LedgerKit) -> Book:
    return kit.book
