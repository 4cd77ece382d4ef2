"""Deciding which runs to claim, and which claims Prefect granted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from itertools import islice
from uuid import UUID

from dispatcher.prefect_api import schemas

StateType = schemas.StateType
Status = schemas.OrchestrationStatus

# Prefect's name, and ours, of the state of a run that waits to be started again.
AWAITING_RETRY = "AwaitingRetry"
_NOBODY: Mapping[UUID, int] = {}
_EARLIEST = datetime.min.replace(tzinfo=UTC)


def plan_claims(
    rows: Sequence[schemas.ScheduledFlowRun],
    others: Iterable[schemas.FlowRun] = (),
    *,
    claimed: Collection[UUID],
    free_slots: int,
    served: Mapping[UUID, int] = _NOBODY,
    refused: Collection[UUID] = (),
    now: datetime | None = None,
) -> list[schemas.FlowRun]:
    """Choose the runs to claim from a poll: by queue priority, then by turns, then by time.

    ``rows`` are what the server showed, in its order; ``others`` further due runs of these rows'
    queues. A queue gets as many claims as it has rows, since rows are what its pauses and limits
    let through. Within a queue, deployments take turns, and those in ``served`` come after those
    that are not. Nothing of the deployments (or runs without one) in ``refused`` is chosen, and no
    run that is put off (see :func:`is_put_off`) at ``now``.
    """
    claimed = {*claimed, *(row.flow_run.id for row in rows if is_put_off(row.flow_run, now))}
    others = [run for run in others if not is_put_off(run, now)]
    places = _startable((row.flow_run for row in rows), claimed)
    places = dict(islice(places.items(), max(free_slots, 0)))
    waiting = _startable([*(row.flow_run for row in rows), *others], claimed)
    queues = {row.flow_run.id: row.work_queue_id for row in rows}
    quotas = Counter(queues[run_id] for run_id in places)
    chosen: list[schemas.FlowRun] = []
    for queue_id, quota in quotas.items():
        candidates = [
            run
            for run in waiting.values()
            if queues.get(run.id, run.work_queue_id) == queue_id and turn_of(run) not in refused
        ]
        chosen += _by_turns(candidates, served)[:quota]
    return chosen


def is_put_off(run: schemas.FlowRun, now: datetime | None) -> bool:
    """Whether a run that is to be started again is not due yet.

    Others are claimed some seconds early, so that their engines are there in time. This one's delay
    is its pause after a failure, in which it need not keep a slot from others.
    """
    due = run.next_scheduled_start_time
    return run.state_name == AWAITING_RETRY and now is not None and due is not None and due > now


def contested_queues(
    rows: Sequence[schemas.ScheduledFlowRun],
    *,
    is_cut: bool,
    limited: Collection[UUID],
) -> frozenset[UUID]:
    """The queues of which a poll may have left due runs out.

    The one that was reached last if the answer was cut off (``is_cut``), by its limit or by that
    of the pool, and those in ``limited``, which have a limit of their own.
    """
    shown = {row.work_queue_id for row in rows}
    last = {row.work_queue_id for row in rows[-1:]} if is_cut else set()
    return frozenset(last | shown.intersection(limited))


def next_turns(served: Mapping[UUID, int], waiting: Collection[UUID]) -> dict[UUID, int] | None:
    """Begin anew once all who wait have had a turn, or more; ``None`` while somebody has not.

    What one had more than the others stays on its account.
    """
    had = min((served.get(key, 0) for key in waiting), default=0)
    return {key: turns - had for key, turns in served.items() if turns > had} if had else None


def turn_of(run: schemas.FlowRun) -> UUID:
    """Who takes turns with others: the run's deployment, or a run without one for itself."""
    return run.deployment_id or run.id


def _startable(
    runs: Iterable[schemas.FlowRun], claimed: Collection[UUID]
) -> dict[UUID, schemas.FlowRun]:
    return {run.id: run for run in runs if run.id not in claimed and _may_be_claimed(run)}


def _may_be_claimed(run: schemas.FlowRun) -> bool:
    # A run whose own engine waits to retry is that engine's, not ours.
    return run.state_type is StateType.SCHEDULED and run.retry_type != "in_process"


def _by_turns(runs: Sequence[schemas.FlowRun], served: Mapping[UUID, int]) -> list[schemas.FlowRun]:
    """Each one's first run, then each one's second; who was served before is that far behind."""
    ordered = sorted(runs, key=lambda run: run.next_scheduled_start_time or _EARLIEST)
    rounds = Counter(served)
    numbered = []
    for run in ordered:
        numbered.append((rounds[turn_of(run)], run))
        rounds[turn_of(run)] += 1
    return [run for _, run in sorted(numbered, key=lambda pair: pair[0])]


def is_granted(result: schemas.OrchestrationResult, *, transition_id: UUID) -> bool:
    """Whether a Pending proposal made the run ours: accepted, or already ours by its id."""
    if result.status is Status.ACCEPT:
        return True
    return owns_pending(result.state, transition_id=transition_id)


def owns_pending(state: schemas.State | None, *, transition_id: UUID) -> bool:
    """Whether a state is the Pending that a claim with this transition id made."""
    return (
        state is not None
        and state.type is StateType.PENDING
        and state.state_details.transition_id == transition_id
    )
