"""What can be decided about a run: leave it, report its end, or put it back."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from dispatcher.prefect_api import schemas

StateType = schemas.StateType
Status = schemas.OrchestrationStatus

# Back-off of a run whose infrastructure failed: doubled for each attempt, up to the maximum.
RETRY_DELAY_SECONDS = 2.0
MAX_RETRY_DELAY_SECONDS = 60.0


@dataclass(frozen=True)
class Report:
    """A state to propose for a run whose job has ended."""

    state: StateType
    message: str


@dataclass(frozen=True)
class Reschedule:
    """Put a run back to be claimed again, not before ``delay_seconds`` have passed."""

    delay_seconds: float
    message: str

    def proposal(self, now: datetime, due: datetime | None = None) -> schemas.StateProposal:
        """The state that puts the run back; one claimed early is not to start before it is due."""
        earliest = now + timedelta(seconds=self.delay_seconds)
        return schemas.StateProposal(
            type=StateType.SCHEDULED,
            name="AwaitingRetry",
            message=self.message,
            scheduled_time=max(earliest, due or earliest),
        )


CANCELLED = Report(StateType.CANCELLED, "Flow run was cancelled and its job has been stopped.")
CANCELLED_BEFORE_START = Report(
    StateType.CANCELLED, "Flow run was cancelled before its job was started."
)


def cancelled_unstarted(*, claimed: bool) -> Report:
    """Report a cancelled run that has no job: still waiting for a slot, or without a trace."""
    if claimed:
        return CANCELLED_BEFORE_START
    return Report(
        StateType.CANCELLED,
        "Flow run was cancelled. It has no infrastructure pid, so nothing could be stopped.",
    )


def cancelled_too_late(status_code: int) -> Report:
    """Report a run that was to be cancelled when its job had ended already, by itself."""
    return Report(
        StateType.CANCELLED,
        "Flow run was cancelled, but its job had ended by itself before it could be stopped"
        f" (status code {status_code}).",
    )


def cancelled_gone(reason: str) -> Report:
    """Report a cancelled run whose job could not be found."""
    return Report(StateType.CANCELLED, f"Flow run was cancelled; its job is gone: {reason}")


def not_submitted(reason: str) -> Report:
    """Report a job that could not be started; its flow has not run."""
    return Report(StateType.CRASHED, f"Flow run could not be submitted to infrastructure: {reason}")


def without_deployment(run: schemas.FlowRun) -> Report:
    """Report a run whose deployment was deleted, as Prefect's worker does."""
    return Report(
        StateType.CANCELLED,
        f"Deployment {run.deployment_id} no longer exists, so its flow run was cancelled.",
    )


def cancelled_meanwhile(refused: Report) -> Report:
    """Report a run that somebody asked to cancel before its end could be told."""
    return Report(StateType.CANCELLED, f"Flow run was cancelled. {refused.message}")


def must_be_cancelled(result: schemas.OrchestrationResult) -> bool:
    """Whether a proposal was refused because the run is being cancelled."""
    return (
        result.status is Status.REJECT and result.state is not None and result.state.is_cancelling
    )


Verdict = Reschedule | Report | None

# What became of a run that is not told by the type of a state.
PUT_BACK = "put back"
MOVED_ON = "moved on"

WITHOUT_QUEUE = "Its work queue was deleted, so no worker would find it to start it again."


def decide_lost(
    run: schemas.FlowRun, *, attempt: int, retries: int, opted_in: bool, loss: str
) -> Verdict:
    """Decide about a run whose claim is closed without an outcome.

    One that never reached Running has executed nothing, so it is started again up to ``retries``
    times; one that did is started again only if its deployment ``opted_in``. Nobody waits any more
    for a run that was paused in its process, so that one is lost as well; a suspended one has no
    process to lose. ``attempt`` counts the starts so far; 0 where this one does not count, which
    also spares the run a delay.
    """
    state = run.state
    if state is None or (state.is_terminal and not state.is_cancelling):
        return None
    if state.is_cancelling:
        return Report(StateType.CANCELLED, f"Flow run was cancelled. {loss}")
    if state.type is StateType.SCHEDULED:
        return _decide_scheduled(run, loss)
    if state.type is StateType.PAUSED and not state.is_waiting_in_process:
        return None
    may_restart = state.type is StateType.PENDING or opted_in
    if not may_restart:
        return Report(StateType.CRASHED, loss)
    return _decide_restart(run, attempt=attempt, retries=retries, loss=loss)


def _decide_restart(run: schemas.FlowRun, *, attempt: int, retries: int, loss: str) -> Verdict:
    if run.work_queue_id is None:
        return Report(StateType.CRASHED, f"{loss} {WITHOUT_QUEUE}")
    if attempt <= retries:
        return Reschedule(retry_delay(attempt), f"{loss} It is started again.")
    reason = f" It was started {attempt} times." if attempt > 1 else ""
    return Report(StateType.CRASHED, f"{loss}{reason}")


def _decide_scheduled(run: schemas.FlowRun, loss: str) -> Verdict:
    # Its own engine was to retry it; polls hide such a run, so nobody else ever will.
    if run.retry_type == "in_process":
        return Report(StateType.CRASHED, f"{loss} It was waiting to be retried.")
    return None


def retry_delay(attempt: int) -> float:
    """Seconds before a run is started again after its attempt number ``attempt`` failed."""
    if attempt == 0:
        return 0.0
    return float(min(RETRY_DELAY_SECONDS * 2 ** (attempt - 1), MAX_RETRY_DELAY_SECONDS))
