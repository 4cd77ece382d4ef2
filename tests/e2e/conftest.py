"""Tests on a real Docker engine; without one they are skipped and say so."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import engine

HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    own = [item for item in items if item.path.is_relative_to(HERE)]
    reason = engine.why_not() if own else None
    if reason is not None:
        for item in own:
            item.add_marker(pytest.mark.skip(reason=reason))
