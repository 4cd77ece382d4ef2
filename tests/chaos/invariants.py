"""What must hold for every run, whatever was done to the machinery: pure functions."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from dispatcher.prefect_api import schemas
from tests.chaos import pauses, records

State = schemas.StateType

# Between a signal, its effect, and the mark that shows it.
TOLERANCE_SECONDS = 0.5

# What was under way when a cancel was asked for may still happen. A server also dates a state when
# its request arrives, before it waits for the database: of two requests that arrive together, the
# one with the earlier date may be carried out last. A server on SQLite that has much to write was
# seen to do so with two that were a second apart.
UNDER_WAY_SECONDS = 2.0

# How long a run may go without any sign of life while nothing excuses it. The promise is 45 s with
# default settings; here the lease is 10 s shorter, and recovery looks 4 s more often. A run that
# nobody takes over is waited for three times 10 s, whatever the lease.
BOUND_SECONDS = 35.0

# Someone has to take care of a run in one of these states.
OWNED = frozenset({State.PENDING, State.RUNNING, State.CANCELLING})

# What a worker, or an engine whose worker is told to stop, does to a run. Prefect itself refuses to
# put back one that is Cancelling, so such a date tells of what came before.
_STEPS = frozenset({State.SCHEDULED, State.PENDING, State.RUNNING, State.CRASHED})

# How long an engine may have been telling its end when it was told to stop: it then writes Crashed,
# although the server may have taken the end.
REPORTING_SECONDS = 2.0
ENGINES_WORDS = (None, "", "Execution was aborted by a termination signal.")

Invariant = Callable[[records.Record], Iterator[str]]


def is_over(record: records.Record) -> Iterator[str]:
    """Nothing is left Scheduled, Pending, Running or Cancelling."""
    if record.history and not record.history[-1].is_terminal:
        yield f"it stays {record.history[-1].name}"


def never_overlaps(record: records.Record) -> Iterator[str]:
    """No two executions at the same time."""
    for earlier, later in itertools.pairwise(sorted(record.executions, key=lambda it: it.began)):
        if later.began < earlier.last:
            overlap = earlier.last - later.began
            yield f"processes {earlier.pid} and {later.pid} overlap by {overlap:.2f} s"


def begins_once_unless_opted_in(record: records.Record) -> Iterator[str]:
    """A flow that has begun is not started again, unless that is wanted."""
    begun = [execution.pid for execution in record.executions if execution.has("begin")]
    if len(begun) > 1 and not record.opted_in:
        yield f"it began {len(begun)} times, in {begun}"


def keeps_its_end(record: records.Record) -> Iterator[str]:
    """A final state stays; a Crashed of an engine's own may become the Cancelled that was asked."""
    for earlier, later in itertools.pairwise(record.history):
        if not earlier.is_terminal or earlier.is_cancelling or later.type is earlier.type:
            continue
        if later.is_cancelling:
            continue  # a user's wish came late, and Prefect grants it for a Crashed run
        if _was_stopped_while_it_reported(earlier, later) or _was_sent_before(earlier, later):
            continue
        yield f"{earlier.type} became {later.type}"


def is_cancelled_if_asked(record: records.Record) -> Iterator[str]:
    """After Cancelling comes Cancelled and nothing else, and no execution goes on."""
    asked = [index for index, state in enumerate(record.history) if state.is_cancelling]
    if not asked:
        return
    after = {
        later.type
        for earlier, later in itertools.pairwise(record.history[asked[0] :])
        if not _was_under_way(later, record.history[asked[0]])
        and not (_was_sent_before(earlier, later) and _reached_its_end(record))
    }
    if extra := after - {State.CANCELLING, State.CANCELLED}:
        yield f"after Cancelling it was {', '.join(sorted(extra))}"
    ended = record.history[-1].timestamp
    assert ended is not None
    for execution in record.executions:
        late = execution.marks[-1].at - ended.timestamp()
        if record.history[-1].type is State.CANCELLED and late > TOLERANCE_SECONDS:
            yield f"process {execution.pid} lived for {late:.2f} s after Cancelled"


def _was_stopped_while_it_reported(end: schemas.State, crash: schemas.State) -> bool:
    """Whether an engine has crashed what it had just ended: in Prefect's words, or in none."""
    if crash.type is not State.CRASHED or crash.message not in ENGINES_WORDS:
        return False
    return _seconds_between(end, crash) < REPORTING_SECONDS


def _was_sent_before(written: schemas.State, later: schemas.State) -> bool:
    """Whether a server that hung has written a state after one that it was sent after it.

    Its date is that of its arrival, and nobody could take it back.
    """
    return _seconds_between(written, later) < 0


def _reached_its_end(record: records.Record) -> bool:
    return any(execution.has("end") for execution in record.executions)


def _seconds_between(earlier: schemas.State, later: schemas.State) -> float:
    assert earlier.timestamp is not None
    assert later.timestamp is not None
    return (later.timestamp - earlier.timestamp).total_seconds()


def _was_under_way(state: schemas.State, cancelling: schemas.State) -> bool:
    return state.type in _STEPS and _seconds_between(cancelling, state) < UNDER_WAY_SECONDS


def tells_the_truth(record: records.Record) -> Iterator[str]:
    """What is Completed was executed to its end; what reported its end keeps it."""
    executions = record.executions
    if record.final == State.COMPLETED and not any(each.has("end") for each in executions):
        yield "it is Completed but was not executed to its end"
    for end in (State.COMPLETED, State.FAILED):
        reported = any(each.has("reported", end, "ACCEPT") for each in executions)
        if reported and record.history and record.final != end:
            yield f"the server took {end} and has {record.final}"


def is_where_it_belongs(record: records.Record) -> Iterator[str]:
    """Nobody executes a run of a pool that he does not serve."""
    for execution in record.executions:
        for mark in execution.marks:
            if mark.word == "begin" and record.pool is not None:
                served = mark.details[0].split(",")
                if record.pool not in served:
                    yield f"{record.pool} was executed by a worker of {', '.join(served)}"


INVARIANTS: tuple[Invariant, ...] = (
    is_over,
    never_overlaps,
    begins_once_unless_opted_in,
    keeps_its_end,
    is_cancelled_if_asked,
    tells_the_truth,
    is_where_it_belongs,
)


def ends_as_it_should(record: records.Record) -> Iterator[str]:
    """What nobody has killed does not crash. Not for runs whose worker was hit."""
    if record.history and record.ends not in ("", record.final):
        yield f"it should be {record.ends}"


@dataclass(frozen=True)
class Silence:
    """A time without any sign of life of a run that somebody has to take care of.

    From the last sign in ``state`` until the next state came; seconds since the epoch.
    """

    state: State
    began: float
    ended: float

    @property
    def seconds(self) -> float:
        """How long it was."""
        return self.ended - self.began

    def calm_seconds(self, felt: Iterable[pauses.Pause]) -> float:
        """How much of it no pause excuses."""
        return pauses.calm_seconds(self.began, self.ended, felt)


def silences(record: records.Record) -> Iterator[Silence]:
    """The silences of a run, one for each of its states that is to be taken care of."""
    marks = [mark.at for execution in record.executions for mark in execution.marks]
    for earlier, later in itertools.pairwise(record.history):
        if earlier.type not in OWNED or earlier.timestamp is None or later.timestamp is None:
            continue
        end = later.timestamp.timestamp()
        signs = [earlier.timestamp.timestamp(), *(mark for mark in marks if mark < end)]
        yield Silence(earlier.type, max(signs), end)


def is_never_forgotten(record: records.Record, felt: Sequence[pauses.Pause]) -> Iterator[str]:
    """Whoever loses a run, it ends or begins anew in time."""
    for silence in silences(record):
        calm = silence.calm_seconds(felt)
        if calm > BOUND_SECONDS:
            yield (
                f"it was {silence.state} without a sign of life for {silence.seconds:.1f} s, "
                f"of which no pause excuses {calm:.1f} s"
            )


def violations(
    found: Iterable[records.Record], *, gentle: bool, felt: Sequence[pauses.Pause]
) -> list[str]:
    """Every violation, with all that is known of its run.

    ``gentle``: nothing was killed that executes a run. ``felt``: what kept recovery from going on.
    """
    invariants = (*INVARIANTS, ends_as_it_should) if gentle else INVARIANTS
    return [
        f"{problem}: {record}"
        for record in found
        for problem in itertools.chain(
            *(invariant(record) for invariant in invariants), is_never_forgotten(record, felt)
        )
    ]
