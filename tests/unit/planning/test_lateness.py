"""Which runs are too late to be started, and what is said of them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from dispatcher import planning
from dispatcher.prefect_api import schemas

S = schemas.StateType

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def run(seconds_late: float, name: str = "Late", **values: Any) -> schemas.FlowRun:
    due = NOW - timedelta(seconds=seconds_late)
    known: dict[str, Any] = {"state_type": S.SCHEDULED, "state_name": name}
    known |= {"id": uuid4(), "flow_id": uuid4(), "name": "r", "next_scheduled_start_time": due}
    return schemas.FlowRun(**known | values)


def test_runs_that_are_later_than_they_may_be_are_skipped() -> None:
    rule = planning.late_rule(60)
    assert rule is not None
    runs = [run(10), run(59), run(61), run(10_000)]
    assert planning.too_late(runs, rule, NOW) == runs[2:]
    assert "due more than 60 s ago" in rule.skipped.message
    assert rule.skipped.state is S.CANCELLED


def test_of_those_that_are_due_only_the_latest_stays() -> None:
    rule = planning.late_rule("latest-only")
    assert rule is not None
    runs = [run(5), run(65), run(125)]
    assert planning.too_late(runs, rule, NOW) == runs[1:]
    assert planning.too_late(runs[:1], rule, NOW) == []
    assert planning.too_late([run(-5), *runs], rule, NOW) == runs[1:]
    assert "latest-only" in rule.skipped.message


@pytest.mark.parametrize(
    "kept",
    [
        run(10_000, "AwaitingRetry"),
        run(10_000, "Resuming"),
        run(10_000, "AwaitingConcurrencySlot"),
        run(10_000, state_type=S.PENDING),
        run(10_000, next_scheduled_start_time=None),
    ],
)
def test_a_run_that_was_taken_care_of_before_is_never_too_late(kept: schemas.FlowRun) -> None:
    rule = planning.late_rule(60)
    assert rule is not None
    assert planning.too_late([kept], rule, NOW) == []


@pytest.mark.parametrize("value", [True, 0, -1, "60", "latest", float("inf"), [60]])
def test_what_is_no_rule_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="a number of seconds or 'latest-only'"):
        planning.late_rule(value)


def test_without_the_job_variable_no_run_is_too_late() -> None:
    assert planning.late_rule(None) is None
