"""What becomes of claims that nobody takes care of: every branch."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import pytest

from dispatcher import planning
from dispatcher.ledger import claims
from dispatcher.planning import recovering
from dispatcher.prefect_api import schemas
from tests.unit import values

S = schemas.StateType
Stage = claims.Stage

LIMITS = planning.Limits(lease_seconds=15.0, infra_retries=3)
NOW = 1000.0


def claim(stage: Stage, *, untouched: float = 0.0, **fields: Any) -> claims.Claim:
    given: dict[str, Any] = {
        "flow_run_id": values.RUN,
        "claim_id": UUID(int=5),
        "pool": "pool",
        "transition_id": values.MINE,
        "stage": stage,
        "attempt": 1,
        "opened_at": NOW - 500,
        "touched_at": NOW - untouched,
    }
    return claims.Claim(**given | fields)


def plan(*open_claims: claims.Claim, leases_count: bool = True) -> list[planning.Action]:
    return planning.plan_recovery(open_claims, now=NOW, limits=LIMITS, leases_count=leases_count)


@pytest.mark.parametrize(
    ("stage", "limit"),
    [
        (Stage.OPENED, 20.0),
        (Stage.PENDING, 10.0),
        # longer than a holder needs to see that its lease is over, and to stop
        (Stage.HELD, 15.0 + 8.0),
        (Stage.FINISHED, 0.0),
    ],
)
def test_a_claim_is_left_alone_until_its_time_is_over(stage: Stage, limit: float) -> None:
    assert LIMITS.untouched(stage) == limit
    if limit:
        assert plan(claim(stage, untouched=limit - 0.1)) == []
    assert len(plan(claim(stage, untouched=limit))) == 1


@pytest.mark.parametrize(
    ("meant_for", "alive", "is_sent_again"),
    [
        ("gone", {"other"}, True),
        ("there", {"there", "other"}, False),
        # Anybody alive may take it.
        (claims.ANYBODY, {"other"}, False),
        # That nobody at all is there says more of the reports than of the workers.
        ("gone", set(), False),
    ],
)
def test_a_message_for_a_worker_that_is_gone_is_not_waited_for(
    meant_for: str, alive: set[str], is_sent_again: bool
) -> None:
    waits = claim(Stage.PENDING, meant_for=meant_for)
    held = claim(Stage.HELD, meant_for=meant_for)
    actions = planning.plan_recovery(
        [waits, held], now=NOW, limits=LIMITS, leases_count=True, alive=alive
    )
    assert actions == ([planning.Resend(waits)] if is_sent_again else [])


def test_what_is_done_about_a_claim_follows_from_its_stage() -> None:
    opened = claim(Stage.OPENED, untouched=60)
    pending = claim(Stage.PENDING, untouched=60)
    sent_once_more = claim(Stage.PENDING, untouched=60, resends=recovering.MAX_RESENDS - 1)
    sent_often = claim(Stage.PENDING, untouched=60, resends=recovering.MAX_RESENDS)
    held = claim(Stage.HELD, untouched=60)
    finished = claim(Stage.FINISHED)
    assert plan(opened, pending, sent_once_more, sent_often, held, finished) == [
        planning.Settle(opened),
        planning.Resend(pending),
        planning.Resend(sent_once_more),
        planning.TakeBack(sent_often),
        planning.TakeBack(held),
        planning.Deliver(finished),
    ]


def test_while_leases_do_not_count_everything_else_goes_on() -> None:
    opened, held = claim(Stage.OPENED, untouched=60), claim(Stage.HELD, untouched=600)
    finished = claim(Stage.FINISHED)
    assert plan(opened, held, finished, leases_count=False) == [
        planning.Settle(opened),
        planning.Deliver(finished),
    ]


def test_a_holder_that_is_known_to_be_dead_is_not_waited_for() -> None:
    dead = claim(Stage.HELD, untouched=NOW)
    assert dead.is_forfeited
    assert plan(dead, leases_count=False) == [planning.TakeBack(dead)]


@pytest.mark.parametrize(
    ("lease_seconds", "recover_interval", "gap", "lost"),
    [
        (15.0, 5.0, 15.0, 23.0),
        (60.0, 5.0, 60.0, 68.0),
        # looks are so rare that holders need not be seen for longer
        (15.0, 10.0, 30.0, 38.0),
    ],
)
def test_a_lease_outlasts_every_pause_that_goes_unnoticed(
    lease_seconds: float, recover_interval: float, gap: float, lost: float
) -> None:
    limits = planning.Limits(
        lease_seconds=lease_seconds, infra_retries=3, recover_interval=recover_interval
    )
    assert (limits.gap_seconds, limits.lost_lease_seconds) == (gap, lost)


@pytest.mark.parametrize(
    ("stage", "now", "expected"),
    [
        # Pending by this very claim, or by another one's
        (Stage.HELD, values.PENDING, True),
        (Stage.PENDING, values.PENDING, True),
        (Stage.HELD, values.PENDING_OF_ANOTHER, False),
        (Stage.PENDING, values.PENDING_OF_ANOTHER, False),
        # its holder may have brought it there
        (Stage.HELD, values.RUNNING, True),
        (Stage.HELD, values.SCHEDULED, True),
        (Stage.HELD, values.CANCELLING, True),
        (Stage.HELD, None, True),
        # nobody of ours has
        (Stage.PENDING, values.RUNNING, False),
        (Stage.PENDING, values.SCHEDULED, False),
        (Stage.PENDING, None, False),
        # somebody has to say that it is cancelled
        (Stage.PENDING, values.CANCELLING, True),
    ],
)
def test_a_lost_claim_decides_about_a_run_only_if_that_is_its_own_doing(
    stage: Stage, now: schemas.State | None, expected: bool
) -> None:
    assert planning.concerns(claim(stage), now) is expected


@pytest.mark.parametrize(
    ("now", "retry_type", "unfinished"),
    [
        (values.PENDING, None, True),
        (values.RUNNING, None, True),
        (values.SCHEDULED, "in_process", True),
        (values.SCHEDULED, "reschedule", False),
        (values.SCHEDULED, None, False),
        (values.COMPLETED, None, False),
        (values.CANCELLING, None, False),
        (None, None, False),
    ],
)
def test_runs_that_need_somebody_are_told_apart(
    now: schemas.State | None, retry_type: str | None, unfinished: bool
) -> None:
    assert planning.is_unfinished(values.run_in(now, retry_type)) is unfinished


def test_a_user_is_told_which_worker_was_lost() -> None:
    held = claim(Stage.HELD, owner="runs#1@host#0b1c")
    assert planning.describe_loss(held).startswith("Its worker runs#1@host was lost")
    dead = claim(Stage.HELD, untouched=NOW, owner="runs#1@host#0b1c")
    assert planning.describe_loss(dead) == "Its process on worker runs#1@host died."
    assert planning.describe_loss(claim(Stage.PENDING)) == "No worker took the run over in time."


OURS, THEIRS = claims.new_transition_id("ours"), claims.new_transition_id("theirs")


@pytest.mark.parametrize(
    ("history", "expected"),
    [
        ([], False),
        ([(S.SCHEDULED, None)], False),
        ([(S.SCHEDULED, None), (S.PENDING, OURS), (S.RUNNING, None)], True),
        ([(S.PENDING, THEIRS), (S.RUNNING, None)], False),
        ([(S.PENDING, None)], False),
        # Claimed anew by another worker after ours was lost, and the other way round.
        ([(S.PENDING, OURS), (S.SCHEDULED, None), (S.PENDING, THEIRS)], False),
        ([(S.PENDING, THEIRS), (S.SCHEDULED, None), (S.PENDING, OURS)], True),
    ],
)
def test_a_run_is_ours_if_its_last_pending_is(
    history: list[tuple[schemas.StateType, UUID | None]], expected: bool
) -> None:
    states = [
        schemas.State(type=kind, state_details=schemas.StateDetails(transition_id=transition_id))
        for kind, transition_id in history
    ]
    assert planning.last_pending_made_by(states, "ours") is expected
