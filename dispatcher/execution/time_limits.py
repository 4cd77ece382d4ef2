"""Celery's own limits on how long a task may take, which users set for a whole installation."""

from __future__ import annotations

from dataclasses import dataclass

# What the pool waits for a task that was told to stop, on top of the grace period, before it kills
# the process: by then the task is hung.
BACKSTOP_SECONDS = 30.0


@dataclass
class TimeLimits:
    """The limits of this worker, in seconds; ``None`` for none. Set once, before its pool forks.

    Celery's pool kills a process whose hard limit is over, and the job in it with nobody to tell
    what happened. So whichever limit comes first has the task stop its job itself.
    """

    grace_seconds: float
    soft: float | None = None
    hard: float | None = None

    @property
    def first(self) -> float | None:
        """After how many seconds the task is told to stop."""
        return min((limit for limit in (self.soft, self.hard) if limit), default=None)

    @property
    def backstop(self) -> float | None:
        """After how many seconds the pool kills the process of a task that has not stopped."""
        first = self.first
        return None if first is None else first + self.grace_seconds + BACKSTOP_SECONDS

    def describe(self) -> str:
        """Say to a user which limit stopped a run, and where it was set."""
        kind, name = "soft time limit", "soft-time-limit"
        if self.first != self.soft:
            kind, name = "time limit", "time-limit"
        setting = f"task_{name.replace('-', '_')}"
        return (
            f"It took longer than Celery's {kind} of {self.first:g} s, which its worker sets for"
            f" all tasks (--{name} or {setting})."
        )
