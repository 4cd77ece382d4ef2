"""Deciding what Prefect is told about a run's end."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

import pydantic

from dispatcher.planning import verdicts
from dispatcher.planning.verdicts import Report, Verdict
from dispatcher.prefect_api import schemas

StateType = schemas.StateType


class StopReason(StrEnum):
    """Why a job was stopped by its own execute task."""

    CANCEL = "cancel"
    LOST = "lost"  # the fence has moved on: somebody else decides about the run
    SHUTDOWN = "shutdown"  # the worker stops and does not wait for its runs
    UNREACHABLE = "unreachable"  # the lease may be over, and the run may be started again
    TIME_LIMIT = "time-limit"  # Celery's, for all tasks of the worker


@dataclass(frozen=True)
class Ending:
    """How a job ended, as its execute task knows it.

    ``reported`` is the state type in which the engine said it left the run, ``stopped`` why the
    task stopped the job itself, ``explanation`` a sentence on what the status code means, and
    ``may_restart`` whether a flow that has begun may be started again. ``attempt`` counts the
    starts so far; a run whose start failed more than ``retries`` times is given up. Where
    ``by_exit_code``, there is no engine: the status code says how the run ended, and
    ``last_lines`` is what the job has printed last.
    """

    status_code: int
    reported: StateType | None = None
    stopped: StopReason | None = None
    explanation: str | None = None
    may_restart: bool = False
    attempt: int = 0
    retries: int = 0
    by_exit_code: bool = False
    last_lines: str = ""


Outcome = Report | Ending

_LOSSES: dict[StopReason | None, str] = {
    StopReason.SHUTDOWN: "Its worker was told to stop and did not wait for it.",
    StopReason.UNREACHABLE: "Its worker could not renew its lease on the run in time.",
}

# The run is somebody else's now, or gone: there is nothing to tell.
NOT_STARTED = Ending(status_code=0, stopped=StopReason.LOST)


def is_failure(outcome: Outcome) -> bool:
    """Whether a job's end counts as an attempt to start its run, as a lost worker does."""
    return isinstance(outcome, Ending) and outcome.stopped is StopReason.UNREACHABLE


def plan_unstarted(reason: StopReason) -> Outcome:
    """Tell the end of a run whose job was to be stopped before it was started."""
    if reason is StopReason.CANCEL:
        return verdicts.CANCELLED_BEFORE_START
    return Ending(status_code=0, stopped=reason)


def plan_failure(error: Exception, *, started: bool, stopped: StopReason | None) -> Outcome:
    """Tell the end of a job whose executor raised instead of telling it."""
    if stopped is not None:
        return Ending(status_code=1, stopped=stopped)
    words = f"{type(error).__name__}: {error}"
    if not started:
        return verdicts.not_submitted(words)
    return Report(StateType.CRASHED, f"Lost track of the flow run's infrastructure: {words}")


_OUTCOME: pydantic.TypeAdapter[Outcome] = pydantic.TypeAdapter(Outcome)


def outcome_to_text(outcome: Outcome) -> str:
    """Write an outcome so that the ledger can keep it."""
    return _OUTCOME.dump_json(outcome).decode()


def outcome_from_text(text: str) -> Outcome:
    """Read an outcome that the ledger kept."""
    return _OUTCOME.validate_json(text)


def needs_state(ending: Ending) -> bool:
    """Whether the run has to be read before its end can be reported."""
    if ending.stopped is StopReason.LOST or ending.reported in schemas.TERMINAL_STATES:
        return False
    return ending.by_exit_code or ending.stopped is not None or ending.status_code == 0


def plan_report(ending: Ending, run: schemas.FlowRun | None) -> Verdict:
    """Decide what to tell Prefect after a job ended, from its end and the run's state.

    ``run`` is ``None`` where it was not read: a Crashed proposal is safe then, since the server
    refuses it for a run that has already ended.
    """
    state = run.state if run else None
    if ending.stopped is StopReason.LOST or ending.reported in schemas.TERMINAL_STATES:
        return None
    if ending.stopped in {StopReason.CANCEL, StopReason.TIME_LIMIT}:
        return None if _has_ended(state) else _stopped(ending, state)
    if state is not None and state.is_cancelling:
        was_stopped = ending.stopped is not None
        return (
            verdicts.CANCELLED if was_stopped else verdicts.cancelled_too_late(ending.status_code)
        )
    if ending.stopped in _LOSSES and run is not None:
        return _lost(ending, run)
    return _ended_by_itself(ending, run)


def _lost(ending: Ending, run: schemas.FlowRun) -> Verdict:
    # A shutdown is nobody's failure, so it is no attempt, however often it comes.
    counts = ending.stopped is StopReason.UNREACHABLE
    return verdicts.decide_lost(
        run,
        attempt=ending.attempt if counts else 0,
        retries=ending.retries if counts else 0,
        opted_in=ending.may_restart,
        loss=_LOSSES[ending.stopped],
    )


def _ended_by_itself(ending: Ending, run: schemas.FlowRun | None) -> Report | None:
    if ending.by_exit_code and ending.status_code >= 0:
        has_ended = run is not None and run.state is not None and run.state.is_terminal
        return None if has_ended else _exited(ending)
    if ending.status_code == 0:
        return _unfinished(run)
    detail = f" {ending.explanation}" if ending.explanation else ""
    return Report(
        StateType.CRASHED,
        f"Flow run infrastructure exited with non-zero status code {ending.status_code}.{detail}",
    )


def _exited(ending: Ending) -> Report:
    if ending.status_code == 0:
        return Report(StateType.COMPLETED, "The job's command ended with exit code 0.")
    explanation = f" {ending.explanation}" if ending.explanation else ""
    output = f" Its last lines:\n{ending.last_lines}" if ending.last_lines else ""
    said = f"The job's command ended with exit code {ending.status_code}.{explanation}{output}"
    return Report(StateType.FAILED, said)


def _stopped(ending: Ending, state: schemas.State | None) -> Report:
    if ending.stopped is StopReason.CANCEL:
        return verdicts.CANCELLED
    cancelling = state is not None and state.is_cancelling
    end = StateType.CANCELLED if cancelling else StateType.CRASHED
    return Report(end, f"Flow run was stopped. {ending.explanation}")


def _has_ended(state: schemas.State | None) -> bool:
    """Whether a run that was to be cancelled ended as it should.

    Crashed does not count: an engine that gets a plain SIGTERM writes it over Cancelling.
    """
    return (
        state is not None
        and state.is_terminal
        and not state.is_cancelling
        and state.type is not StateType.CRASHED
    )


def _unfinished(run: schemas.FlowRun | None) -> Report | None:
    if run is None or run.state is None:
        return None
    state = run.state
    waits_in_process = state.type is StateType.SCHEDULED and run.retry_type == "in_process"
    waits_in_process = waits_in_process or state.is_waiting_in_process
    if state.type in {StateType.PENDING, StateType.RUNNING} or waits_in_process:
        return Report(
            StateType.CRASHED,
            f"Flow run infrastructure exited with status code 0 but left the run {state.name}.",
        )
    return None
