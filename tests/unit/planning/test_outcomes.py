"""What Prefect is told about a run's end: every branch, and what holds for any input."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dispatcher import planning
from dispatcher.prefect_api import schemas
from tests.unit import values

S = schemas.StateType
Stop = planning.StopReason


@pytest.mark.parametrize(
    ("started", "words"),
    [
        (False, "could not be submitted to infrastructure: OSError: no pty"),
        (True, "Lost track of the flow run's infrastructure: OSError: no pty"),
    ],
)
def test_an_executor_that_failed_is_reported(started: bool, words: str) -> None:
    outcome = planning.plan_failure(OSError("no pty"), started=started, stopped=None)
    assert isinstance(outcome, planning.Report)
    assert outcome.state is S.CRASHED
    assert words in outcome.message


@pytest.mark.parametrize("started", [True, False])
@pytest.mark.parametrize("stopped", Stop)
def test_an_executor_that_failed_while_its_job_was_stopped_says_no_more_than_that(
    started: bool, stopped: Stop
) -> None:
    outcome = planning.plan_failure(OSError("no pty"), started=started, stopped=stopped)
    assert outcome == planning.Ending(status_code=1, stopped=stopped)


@pytest.mark.parametrize(
    ("reason", "outcome"),
    [
        (Stop.CANCEL, planning.CANCELLED_BEFORE_START),
        (Stop.LOST, planning.NOT_STARTED),
        (Stop.SHUTDOWN, planning.Ending(status_code=0, stopped=Stop.SHUTDOWN)),
        (Stop.UNREACHABLE, planning.Ending(status_code=0, stopped=Stop.UNREACHABLE)),
    ],
)
def test_a_job_that_was_to_be_stopped_before_its_start_ends_by_the_reason(
    reason: Stop, outcome: planning.Outcome
) -> None:
    assert planning.plan_unstarted(reason) == outcome


@pytest.mark.parametrize(
    ("ending", "needed"),
    [
        # exit 0 says nothing about the state
        (planning.Ending(0), True),
        (planning.Ending(0, S.PAUSED), True),
        # the engine has told
        (planning.Ending(0, S.COMPLETED), False),
        (planning.Ending(0, S.CANCELLED, Stop.CANCEL), False),
        # Crashed may be proposed blindly
        (planning.Ending(1), False),
        # did it end as Cancelled, or must that be said?
        (planning.Ending(-9, None, Stop.CANCEL), True),
        (planning.Ending(0, None, Stop.CANCEL), True),
        # had its flow begun?
        (planning.Ending(-15, None, Stop.SHUTDOWN), True),
        (planning.Ending(-9, None, Stop.UNREACHABLE), True),
        # it is somebody else's now
        (planning.Ending(0, None, Stop.LOST), False),
        (planning.Ending(-9, None, Stop.LOST), False),
    ],
)
def test_a_run_is_read_only_where_its_end_depends_on_it(
    ending: planning.Ending, needed: bool
) -> None:
    assert planning.needs_state(ending) is needed


@pytest.mark.parametrize(
    ("status_code", "now", "reported", "retry_type", "stopped", "expected"),
    [
        # the engine reported its end, whatever the process' exit code
        (0, None, S.COMPLETED, None, None, None),
        (1, None, S.FAILED, None, None, None),
        (-15, None, S.CANCELLED, None, Stop.CANCEL, None),
        (-15, None, S.COMPLETED, None, Stop.SHUTDOWN, None),
        # the fence has moved on: not a word
        (-9, None, None, None, Stop.LOST, None),
        (0, values.RUNNING, None, None, Stop.LOST, None),
        (-9, values.CANCELLING, None, None, Stop.LOST, None),
        # stopped because it was to be cancelled
        (-9, values.CANCELLING, None, None, Stop.CANCEL, S.CANCELLED),
        (0, values.CANCELLING_BY_2X, None, None, Stop.CANCEL, S.CANCELLED),
        (-9, values.RUNNING, None, None, Stop.CANCEL, S.CANCELLED),
        (-9, None, None, None, Stop.CANCEL, S.CANCELLED),
        # an engine that got SIGTERM writes Crashed over Cancelling
        (-15, values.CRASHED, None, None, Stop.CANCEL, S.CANCELLED),
        # it ended as it should, or finished just before
        (0, values.CANCELLED, None, None, Stop.CANCEL, None),
        (0, values.COMPLETED, None, None, Stop.CANCEL, None),
        # a cancel that reached the run but not yet us
        (0, values.CANCELLING, None, None, None, S.CANCELLED),
        (-15, values.CANCELLING, None, None, Stop.SHUTDOWN, S.CANCELLED),
        # stopped with its lease, a moment after its flow had begun
        (-9, values.RUNNING, None, None, Stop.UNREACHABLE, S.CRASHED),
        (-9, values.CANCELLING, None, None, Stop.UNREACHABLE, S.CANCELLED),
        (-9, values.SCHEDULED, None, None, Stop.UNREACHABLE, None),
        # stopped with its worker, once its flow had begun
        (-15, values.RUNNING, None, None, Stop.SHUTDOWN, S.CRASHED),
        (-15, values.SCHEDULED, None, "in_process", Stop.SHUTDOWN, S.CRASHED),
        # it ended by itself, or waits for somebody
        (-15, values.COMPLETED, None, None, Stop.SHUTDOWN, None),
        (-15, values.SUSPENDED, None, None, Stop.SHUTDOWN, None),
        # it waited in its process for somebody, and does so no more
        (-15, values.PAUSED, None, None, Stop.SHUTDOWN, S.CRASHED),
        (0, values.PAUSED, None, None, None, S.CRASHED),
        (-15, values.SCHEDULED, None, None, Stop.SHUTDOWN, None),
        # the infrastructure failed
        (1, None, None, None, None, S.CRASHED),
        (-9, values.RUNNING, None, None, None, S.CRASHED),
        # the engine went away without an end
        (0, values.RUNNING, None, None, None, S.CRASHED),
        (0, values.PENDING, None, None, None, S.CRASHED),
        # an engine that waits to retry in its process, which is gone
        (0, values.SCHEDULED, None, "in_process", None, S.CRASHED),
        # rescheduled or suspended: somebody starts it again
        (0, values.SCHEDULED, None, "reschedule", None, None),
        (0, values.SCHEDULED, None, None, None, None),
        (0, values.SUSPENDED, S.PAUSED, None, None, None),
        # over
        (0, values.COMPLETED, None, None, None, None),
        (0, values.CRASHED, None, None, None, None),
        # nothing is known, so nothing is said
        (0, None, None, None, None, None),
    ],
)
def test_the_end_of_a_job_is_reported_where_the_engine_did_not(
    *,
    status_code: int,
    now: schemas.State | None,
    reported: S | None,
    retry_type: str | None,
    stopped: Stop | None,
    expected: S | None,
) -> None:
    verdict = planning.plan_report(
        planning.Ending(status_code, reported, stopped), values.run_in(now, retry_type)
    )
    assert not isinstance(verdict, planning.Reschedule)
    assert (verdict.state if verdict else None) is expected


@pytest.mark.parametrize(
    ("now", "may_restart"),
    [
        # nothing of the flow has been executed
        (values.PENDING, False),
        (values.PENDING, True),
        # the setting or the deployment allows it
        (values.RUNNING, True),
    ],
)
def test_a_run_that_stops_with_its_worker_is_put_back_at_once_where_it_may_be_restarted(
    now: schemas.State, may_restart: bool
) -> None:
    ending = planning.Ending(-15, stopped=Stop.SHUTDOWN, may_restart=may_restart)
    verdict = planning.plan_report(ending, values.run_in(now))
    assert isinstance(verdict, planning.Reschedule)
    assert verdict.delay_seconds == 0
    assert "Its worker was told to stop" in verdict.message


@pytest.mark.parametrize(("now", "may_restart"), [(values.PENDING, False), (values.RUNNING, True)])
def test_a_run_whose_job_was_stopped_with_its_lease_is_put_back_a_number_of_times(
    now: schemas.State, may_restart: bool
) -> None:
    def verdict(attempt: int) -> planning.Verdict:
        ending = planning.Ending(
            -9, stopped=Stop.UNREACHABLE, may_restart=may_restart, attempt=attempt, retries=2
        )
        return planning.plan_report(ending, values.run_in(now))

    loss = "Its worker could not renew its lease on the run in time."
    again = f"{loss} It is started again."
    assert verdict(1) == planning.Reschedule(2.0, again)
    assert verdict(2) == planning.Reschedule(4.0, again)
    assert verdict(3) == planning.Report(S.CRASHED, f"{loss} It was started 3 times.")


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        (planning.Ending(-9, stopped=Stop.UNREACHABLE), True),
        (planning.Ending(-9, stopped=Stop.SHUTDOWN), False),
        (planning.Ending(1), False),
        (planning.CANCELLED, False),
    ],
)
def test_only_a_job_that_lost_its_lease_failed_to_be_started(
    outcome: planning.Outcome, expected: bool
) -> None:
    assert planning.is_failure(outcome) is expected


@pytest.mark.parametrize(
    ("ending", "expected"),
    [
        (planning.Ending(0), None),
        (planning.Ending(1), S.CRASHED),
        (planning.Ending(-9, stopped=Stop.CANCEL), S.CANCELLED),
    ],
)
def test_without_a_run_only_what_the_job_itself_told_is_reported(
    ending: planning.Ending, expected: S | None
) -> None:
    verdict = planning.plan_report(ending, None)
    assert (verdict.state if isinstance(verdict, planning.Report) else None) is expected


def test_a_crash_report_names_the_exit_status_and_what_it_usually_means() -> None:
    verdict = planning.plan_report(planning.Ending(137, explanation="Out of memory?"), None)
    assert isinstance(verdict, planning.Report)
    assert verdict.message.endswith("exited with non-zero status code 137. Out of memory?")


ENDINGS = st.builds(
    planning.Ending,
    status_code=st.integers(-15, 137),
    reported=st.none() | st.sampled_from(S),
    stopped=st.none() | st.sampled_from(Stop),
    explanation=st.none() | st.text(),
    may_restart=st.booleans(),
)


@given(ending=ENDINGS, run=values.ANY_RUN)
def test_no_report_overwrites_a_final_state_that_was_seen(
    ending: planning.Ending, run: schemas.FlowRun
) -> None:
    verdict = planning.plan_report(ending, run)
    if ending.reported in schemas.TERMINAL_STATES:
        assert verdict is None
    now = run.state
    if verdict is not None and now is not None and now.is_terminal and not now.is_cancelling:
        # Both are put to the server without force, which refuses the second.
        assert isinstance(verdict, planning.Report)
        cancelled_after_crash = verdict.state is S.CANCELLED and now.type is S.CRASHED
        refused_by_server = verdict.state is S.CRASHED
        assert cancelled_after_crash or refused_by_server


@given(ending=ENDINGS, run=values.ANY_RUN)
def test_a_holder_that_lost_its_fence_never_reports(
    ending: planning.Ending, run: schemas.FlowRun
) -> None:
    lost = replace(ending, stopped=Stop.LOST)
    assert planning.plan_report(lost, run) is None
    assert not planning.needs_state(lost)


@given(ending=ENDINGS, run=values.ANY_RUN)
def test_a_run_that_was_to_be_cancelled_is_never_reported_as_crashed_or_put_back(
    ending: planning.Ending, run: schemas.FlowRun
) -> None:
    verdict = planning.plan_report(ending, run)
    cancelling = run.state is not None and run.state.is_cancelling
    if verdict is not None and (ending.stopped is Stop.CANCEL or cancelling):
        assert isinstance(verdict, planning.Report)
        assert verdict.state is S.CANCELLED


@given(ending=ENDINGS, run=values.ANY_RUN)
def test_a_flow_that_has_begun_is_put_back_only_where_that_was_allowed(
    ending: planning.Ending, run: schemas.FlowRun
) -> None:
    verdict = planning.plan_report(ending, run)
    if isinstance(verdict, planning.Reschedule):
        assert run.state is not None
        assert run.state.type is S.PENDING or ending.may_restart
        assert ending.stopped in {Stop.SHUTDOWN, Stop.UNREACHABLE}


@given(ending=ENDINGS)
def test_an_ending_survives_the_ledger(ending: planning.Ending) -> None:
    assert planning.outcome_from_text(planning.outcome_to_text(ending)) == ending


@given(report=st.builds(planning.Report, st.sampled_from(S), st.text()))
def test_a_report_survives_the_ledger(report: planning.Report) -> None:
    assert planning.outcome_from_text(planning.outcome_to_text(report)) == report


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (values.RUNNING, S.CRASHED),
        (values.PENDING, S.CRASHED),
        (values.CANCELLING, S.CANCELLED),
        (values.COMPLETED, None),
    ],
)
def test_a_run_that_a_time_limit_stopped_says_which_one(
    state: schemas.State, end: schemas.StateType | None
) -> None:
    ending = planning.Ending(status_code=-15, stopped=Stop.TIME_LIMIT, explanation="Too long.")
    assert planning.needs_state(ending)
    report = planning.plan_report(ending, values.run_in(state))
    assert report == (
        None if end is None else planning.Report(end, "Flow run was stopped. Too long.")
    )


@pytest.mark.parametrize(
    ("stopped", "words"),
    [
        (None, "had ended by itself"),
        (Stop.SHUTDOWN, "has been stopped"),
        (Stop.CANCEL, "has been stopped"),
    ],
)
def test_a_cancelled_run_says_that_its_job_was_stopped_only_if_it_was(
    stopped: Stop | None, words: str
) -> None:
    ending = planning.Ending(status_code=0, stopped=stopped)
    report = planning.plan_report(ending, values.run_in(values.CANCELLING))
    assert isinstance(report, planning.Report)
    assert words in report.message


@pytest.mark.parametrize(
    ("code", "state", "words"),
    [
        (0, S.COMPLETED, "ended with exit code 0."),
        (3, S.FAILED, "ended with exit code 3. Its last lines:\nno such table"),
        (-9, S.CRASHED, "non-zero status code -9"),
    ],
)
@pytest.mark.parametrize("now", [values.PENDING, values.RUNNING])
def test_without_an_engine_the_exit_code_tells_the_end(
    code: int, state: S, words: str, now: schemas.State
) -> None:
    ending = planning.Ending(code, by_exit_code=True, last_lines="no such table" if code else "")
    assert planning.needs_state(ending)
    verdict = planning.plan_report(ending, values.run_in(now))
    assert isinstance(verdict, planning.Report)
    assert verdict.state is state
    assert words in verdict.message
    assert planning.outcome_from_text(planning.outcome_to_text(ending)) == ending


def test_an_exit_code_that_is_explained_is_told_with_that() -> None:
    ending = planning.Ending(127, by_exit_code=True, explanation="It was not found.")
    verdict = planning.plan_report(ending, None)
    assert verdict == planning.Report(
        S.FAILED, "The job's command ended with exit code 127. It was not found."
    )


@pytest.mark.parametrize("code", [0, 3])
def test_an_exit_code_undoes_no_end_that_is_there_already(code: int) -> None:
    ending = planning.Ending(code, by_exit_code=True)
    assert planning.plan_report(ending, values.run_in(values.COMPLETED)) is None


def test_a_cancelled_command_is_cancelled_whatever_its_exit_code() -> None:
    ending = planning.Ending(0, by_exit_code=True, stopped=Stop.CANCEL)
    verdict = planning.plan_report(ending, values.run_in(values.CANCELLING))
    assert verdict == planning.CANCELLED
