"""What is decided about runs that ended or were lost: every branch, and what always holds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import planning
from dispatcher.planning import verdicts
from dispatcher.prefect_api import schemas
from tests.unit import values

S = schemas.StateType
Status = schemas.OrchestrationStatus

LOSS = "Its worker was lost."


@pytest.mark.parametrize(
    ("report", "type_", "words"),
    [
        (planning.cancelled_unstarted(claimed=True), S.CANCELLED, "before its job was started"),
        (planning.cancelled_unstarted(claimed=False), S.CANCELLED, "no infrastructure pid"),
        (planning.cancelled_gone("no process 7"), S.CANCELLED, "its job is gone: no process 7"),
        (planning.not_submitted("no image"), S.CRASHED, "could not be submitted"),
        (planning.not_submitted("Flow not found"), S.CRASHED, "Flow not found"),
        (
            planning.without_deployment(values.flow_run(deployment_id=values.MINE)),
            S.CANCELLED,
            f"Deployment {values.MINE} no longer exists",
        ),
    ],
)
def test_reports_say_what_happened(report: planning.Report, type_: S, words: str) -> None:
    assert report.state is type_
    assert words in report.message


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        (values.result(Status.REJECT, values.CANCELLING), True),
        (values.result(Status.REJECT, values.CANCELLING_BY_2X), True),
        # refused, but for another reason
        (values.result(Status.REJECT, values.RUNNING), False),
        (values.result(Status.REJECT, None), False),
        # over already
        (values.result(Status.ABORT, values.CANCELLED), False),
        (values.result(Status.ACCEPT, values.CANCELLING), False),
    ],
)
def test_a_refused_report_of_a_cancelling_run_is_told_apart(
    verdict: schemas.OrchestrationResult, expected: bool
) -> None:
    assert planning.must_be_cancelled(verdict) is expected


def decide(
    run: schemas.FlowRun, *, attempt: int = 1, retries: int = 3, opted_in: bool = False
) -> planning.Verdict:
    return planning.decide_lost(run, attempt=attempt, retries=retries, opted_in=opted_in, loss=LOSS)


@pytest.mark.parametrize(
    ("now", "retry_type"),
    [
        # it ended, or has no state
        (values.COMPLETED, None),
        (values.CRASHED, None),
        (values.CANCELLED, None),
        (None, None),
        # it waits for somebody else, who will start it again
        (values.SCHEDULED, None),
        (values.SCHEDULED, "reschedule"),
        (values.SUSPENDED, None),
    ],
)
@pytest.mark.parametrize("opted_in", [True, False])
def test_a_run_that_needs_nobody_is_left_alone(
    now: schemas.State | None, retry_type: str | None, opted_in: bool
) -> None:
    assert decide(values.run_in(now, retry_type), opted_in=opted_in) is None


@pytest.mark.parametrize("now", [values.CANCELLING, values.CANCELLING_BY_2X])
def test_a_lost_run_that_was_to_be_cancelled_is_cancelled(now: schemas.State) -> None:
    assert decide(values.run_in(now), opted_in=True) == planning.Report(
        S.CANCELLED, f"Flow run was cancelled. {LOSS}"
    )


def test_a_lost_run_that_its_own_engine_was_to_retry_is_crashed() -> None:
    verdict = decide(values.run_in(values.SCHEDULED, "in_process"), opted_in=True)
    assert verdict == planning.Report(S.CRASHED, f"{LOSS} It was waiting to be retried.")


@pytest.mark.parametrize(
    ("now", "opted_in", "attempt", "retries", "delay"),
    [
        # it never reached Running
        (values.PENDING, False, 1, 3, 2.0),
        (values.PENDING, False, 3, 3, 8.0),
        (values.PENDING, True, 1, 1, 2.0),
        # its deployment says that it may be executed again
        (values.RUNNING, True, 1, 3, 2.0),
        (values.RUNNING, True, 2, 2, 4.0),
        (values.PAUSED, True, 1, 1, 2.0),
        # a start that does not count
        (values.PENDING, False, 0, 0, 0.0),
        (values.RUNNING, True, 0, 0, 0.0),
    ],
)
def test_a_lost_run_that_may_be_started_again_is_put_back_with_a_growing_delay(
    *, now: schemas.State, opted_in: bool, attempt: int, retries: int, delay: float
) -> None:
    verdict = decide(values.run_in(now), attempt=attempt, retries=retries, opted_in=opted_in)
    assert verdict == planning.Reschedule(delay, f"{LOSS} It is started again.")


@pytest.mark.parametrize(
    ("now", "opted_in", "attempt", "retries", "message"),
    [
        # its flow has begun, and nobody allowed to execute it twice
        (values.RUNNING, False, 1, 3, LOSS),
        # it waited in its process for somebody to resume it
        (values.PAUSED, False, 1, 3, LOSS),
        (values.RUNNING, False, 2, 3, LOSS),
        # it kills one worker after the other
        (values.PENDING, False, 4, 3, f"{LOSS} It was started 4 times."),
        (values.RUNNING, True, 3, 2, f"{LOSS} It was started 3 times."),
        # no second start at all
        (values.PENDING, False, 1, 0, LOSS),
        (values.RUNNING, True, 1, 0, LOSS),
    ],
)
def test_a_lost_run_that_may_not_be_started_again_is_crashed_and_says_why(
    *, now: schemas.State, opted_in: bool, attempt: int, retries: int, message: str
) -> None:
    verdict = decide(values.run_in(now), attempt=attempt, retries=retries, opted_in=opted_in)
    assert verdict == planning.Report(S.CRASHED, message)


@pytest.mark.parametrize("now", [values.PENDING, values.RUNNING])
def test_a_lost_run_whose_queue_is_gone_is_not_put_back_for_nobody(now: schemas.State) -> None:
    run = values.flow_run(state=now, work_queue_id=None)
    verdict = decide(run, opted_in=True)
    assert isinstance(verdict, planning.Report)
    assert verdict.state is S.CRASHED
    assert "Its work queue was deleted" in verdict.message


@given(
    run=values.ANY_RUN,
    attempt=st.integers(0, 50),
    retries=st.integers(0, 50),
    opted_in=st.booleans(),
)
def test_a_lost_run_is_put_back_only_within_its_retries_and_if_it_had_not_begun_or_opted_in(
    run: schemas.FlowRun, attempt: int, retries: int, opted_in: bool
) -> None:
    verdict = decide(run, attempt=attempt, retries=retries, opted_in=opted_in)
    if isinstance(verdict, planning.Reschedule):
        assert run.state is not None
        begun = run.state.type in {S.RUNNING, S.PAUSED}
        assert run.state.type is S.PENDING or (begun and opted_in)
        assert attempt <= retries
        assert 0 <= verdict.delay_seconds <= verdicts.MAX_RETRY_DELAY_SECONDS
    elif verdict is not None:
        assert run.state is not None
        assert run.state.is_cancelling or not run.state.is_terminal


def test_the_delay_doubles_up_to_its_maximum() -> None:
    delays = [verdicts.retry_delay(attempt) for attempt in range(8)]
    assert delays == [0.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]


def test_a_run_is_put_back_as_prefect_does_it_for_a_retry() -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    proposal = planning.Reschedule(4.0, LOSS).proposal(now)
    assert (proposal.type, proposal.name, proposal.message) == (S.SCHEDULED, "AwaitingRetry", LOSS)
    assert proposal.scheduled_time == now + timedelta(seconds=4)


@pytest.mark.parametrize(("due_in", "starts_in"), [(-60, 4), (2, 4), (60, 60)])
def test_a_run_that_was_claimed_early_is_put_back_to_the_time_when_it_is_due(
    due_in: float, starts_in: float
) -> None:
    now = datetime(2030, 1, 1, tzinfo=UTC)
    due = now + timedelta(seconds=due_in)
    proposal = planning.Reschedule(4.0, LOSS).proposal(now, due)
    assert proposal.scheduled_time == now + timedelta(seconds=starts_in)


def test_an_end_that_comes_after_a_cancel_is_told_with_it() -> None:
    refused = planning.Report(S.CRASHED, "It exited with status 1.")
    told = planning.cancelled_meanwhile(refused)
    assert told == planning.Report(S.CANCELLED, "Flow run was cancelled. It exited with status 1.")
