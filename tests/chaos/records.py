"""What is known of a run afterwards: its states, and the marks of its executions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from uuid import UUID

from dispatcher.prefect_api import schemas


@dataclass(frozen=True)
class Mark:
    """One line of an execution; ``clock`` is monotonic, ``at`` the time of day, in seconds."""

    word: str
    pid: int
    clock: float
    at: float
    details: tuple[str, ...] = ()


@dataclass(frozen=True)
class Execution:
    """The marks of one process, in their order."""

    pid: int
    marks: tuple[Mark, ...]

    @property
    def began(self) -> float:
        """The monotonic time of its first mark."""
        return self.marks[0].clock

    @property
    def last(self) -> float:
        """The monotonic time of its last mark."""
        return self.marks[-1].clock

    def has(self, word: str, *details: str) -> bool:
        """Whether it left such a mark."""
        return any(
            mark.word == word and mark.details[: len(details)] == details for mark in self.marks
        )

    def __str__(self) -> str:
        beats = [mark for mark in self.marks if mark.word == "beat"]
        shown = [mark for mark in self.marks if mark.word != "beat" or mark is beats[-1]]
        return f"{self.pid}: " + " ".join(f"{mark.word}@{mark.at:.2f}" for mark in shown)


@dataclass(frozen=True)
class Record:
    """One run. ``opted_in``: its flow may be executed again after it has begun.

    ``ends`` is the state that it ends in unless it is hit; ``history`` is empty for a run that was
    deleted. ``pool`` is its work pool, if it still has one.
    """

    run_id: UUID
    kind: str
    ends: str
    opted_in: bool
    history: tuple[schemas.State, ...]
    executions: tuple[Execution, ...] = field(default=())
    pool: str | None = None

    @property
    def final(self) -> str:
        """The type of its last state."""
        return self.history[-1].type.value if self.history else "DELETED"

    def __str__(self) -> str:
        states = " > ".join(_describe(state) for state in self.history)
        marks = "; ".join(str(execution) for execution in self.executions)
        return f"{self.run_id} ({self.kind}): {states} | {marks or 'never executed'}"


def in_order(
    states: Sequence[schemas.State], present: schemas.State | None
) -> tuple[schemas.State, ...]:
    """A run's states by their dates, but the present one last.

    A server dates a state when its request arrives. One that is overloaded may write it long after,
    when its sender is dead, and then it is what holds.
    """
    last = [state for state in states if present is not None and state.id == present.id]
    return (*(state for state in states if state not in last), *last)


def read_executions(file: Path) -> tuple[Execution, ...]:
    """The executions whose marks are in a file, in the order of their beginning."""
    if not file.exists():
        return ()
    marks = [_mark(line) for line in file.read_text().splitlines()]
    by_pid: dict[int, list[Mark]] = {}
    for mark in marks:
        # What has left its session is looked for in the process table.
        if mark.word != "escaped":
            by_pid.setdefault(mark.pid, []).append(mark)
    return tuple(Execution(pid, tuple(of_one)) for pid, of_one in by_pid.items())


def _mark(line: str) -> Mark:
    word, pid, clock, at, *details = line.split()
    return Mark(word, int(pid), float(clock), float(at), tuple(details))


def _describe(state: schemas.State) -> str:
    when = f"@{state.timestamp.timestamp():.2f}" if state.timestamp else ""
    name = f"/{state.name}" if state.name.upper() != state.type else ""
    message = f" {state.message!r}" if state.message else ""
    return f"{state.type}{name}{when}{message}"
