"""Deciding which runs are so late that nobody wants them started any more."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from dispatcher.planning import verdicts
from dispatcher.prefect_api import schemas

SKIP_IF_LATE_VARIABLE = "skip_if_late"
LATEST_ONLY = "latest-only"

# Prefect's names of the state of a run that has not been started yet; one that waits to be started
# again, or to be resumed, is not late but has been taken care of.
_NEVER_STARTED = frozenset({"Scheduled", "Late"})


@dataclass(frozen=True)
class LateRule:
    """When a run of a deployment is too late: after so many ``seconds``.

    With ``None``, as soon as a later one of its deployment is due.
    """

    seconds: float | None

    def due_before(self, now: datetime) -> datetime:
        """Runs that were due before are to be looked at."""
        return now - timedelta(seconds=self.seconds or 0.0)

    @property
    def skipped(self) -> verdicts.Report:
        """The end of runs that are too late."""
        why = (
            "a later run of its deployment is due as well (latest-only)"
            if self.seconds is None
            else f"it was due more than {self.seconds:g} s ago"
        )
        return verdicts.Report(
            schemas.StateType.CANCELLED,
            f"Flow run was skipped: {why}, as its deployment wants it ({SKIP_IF_LATE_VARIABLE}).",
        )


def late_rule(value: Any) -> LateRule | None:
    """The rule that a job variable's value stands for; ``None`` if it is not set.

    Raises:
        ValueError: it is neither a number of seconds nor ``latest-only``.
    """
    if value is None:
        return None
    if value == LATEST_ONLY:
        return LateRule(None)
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < float("inf"):
        return LateRule(float(value))
    raise ValueError(f"a number of seconds or {LATEST_ONLY!r}")


def is_late(run: schemas.FlowRun, now: datetime) -> bool:
    """Whether a run that was never started should have begun before ``now``."""
    due = run.next_scheduled_start_time
    is_new = run.state_type is schemas.StateType.SCHEDULED and run.state_name in _NEVER_STARTED
    return is_new and due is not None and due < now


def too_late(
    runs: Sequence[schemas.FlowRun], rule: LateRule, now: datetime
) -> list[schemas.FlowRun]:
    """Choose the runs of one deployment to skip, of its runs that are due, the newest first."""
    late = [run for run in runs if is_late(run, rule.due_before(now))]
    return late if rule.seconds is not None else late[1:]
