"""How a run gets cancelled: every branch."""

from __future__ import annotations

from uuid import UUID

import pytest

from dispatcher import planning
from dispatcher.ledger import claims
from tests.unit import values


@pytest.mark.parametrize(
    ("found", "infrastructure_pid", "action"),
    [
        (claims.CancelResult.MARKED, None, "wake-holder"),
        (claims.CancelResult.MARKED, "host:1", "wake-holder"),
        (claims.CancelResult.WAITING, "host:1", "wait"),
        # nobody had begun; a pid is left from an earlier attempt
        (claims.CancelResult.CLOSED, "host:1", "report"),
        (claims.CancelResult.ABSENT, "host:1", "kill"),
        (claims.CancelResult.ABSENT, None, "report"),
        (claims.CancelResult.ABSENT, "", "report"),
    ],
)
def test_what_cancels_a_run_follows_from_who_holds_it(
    found: claims.CancelResult, infrastructure_pid: str | None, action: str
) -> None:
    run = values.flow_run(infrastructure_pid=infrastructure_pid)
    assert planning.plan_cancellation(run, found) == action


def test_what_the_ledger_says_of_a_cancel_always_leads_to_an_action() -> None:
    for found in claims.CancelResult:
        assert planning.plan_cancellation(values.flow_run(), found) in planning.CancelAction


IDS = [UUID(int=number) for number in range(1, 8)]


def test_held_runs_that_were_cancelled_or_deleted_over_their_holders_heads_are_unwanted() -> None:
    states = {
        IDS[0]: values.CANCELLED,
        IDS[1]: values.RUNNING,
        IDS[2]: None,
        # the holder stops and reports it itself
        IDS[3]: values.CANCELLING,
        # ended otherwise: its holder is about to see that
        IDS[4]: values.COMPLETED,
        IDS[5]: values.CRASHED,
    }
    assert planning.plan_unwanted(IDS, states) == [IDS[0], IDS[6]]
