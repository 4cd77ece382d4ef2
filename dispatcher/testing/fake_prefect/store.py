"""The tables of the fake Prefect API, and what a transition does to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from datetime import datetime, timedelta
from typing import TypeVar
from uuid import UUID, uuid4

from dispatcher.prefect_api.schemas import OrchestrationStatus, StateType
from dispatcher.testing.fake_prefect import orchestration, records, transitions

T = TypeVar("T")
R = TypeVar("R", bound=records.Record)

OCCUPYING = frozenset({StateType.PENDING, StateType.RUNNING})  # count against pool and queue


class Store:
    """All records of one fake server; not thread-safe by itself.

    ``clock`` tells the time; no two states of the store share one, as on the server.
    """

    def __init__(self, clock: Callable[[], datetime]) -> None:
        self._clock = clock
        self._last_time: datetime | None = None
        self.flows: dict[UUID, records.Flow] = {}
        self.work_pools: dict[str, records.WorkPool] = {}
        self.work_queues: dict[UUID, records.WorkQueue] = {}
        self.workers: dict[tuple[UUID, str], records.Worker] = {}
        self.deployments: dict[UUID, records.Deployment] = {}
        self.flow_runs: dict[UUID, records.FlowRun] = {}
        self.task_runs: dict[UUID, records.TaskRun] = {}
        self.variables: dict[str, records.Variable] = {}
        self.block_types: dict[UUID, records.BlockType] = {}
        self.block_schemas: dict[UUID, records.BlockSchema] = {}
        self.block_documents: dict[UUID, records.BlockDocument] = {}
        self.logs: list[records.Log] = []
        self.events: list[records.Event] = []

    def now(self) -> datetime:
        """The time, later at each call."""
        now = self._clock()
        if self._last_time is not None:
            now = max(now, self._last_time + timedelta(microseconds=1))
        self._last_time = now
        return now

    def new(self, kind: type[R], **values: object) -> R:
        """A new record of a kind; the caller puts it into its table."""
        now = self.now()
        return kind.model_validate({"created": now, "updated": now, **values})

    def queues_of(self, pool: records.WorkPool) -> list[records.WorkQueue]:
        """A pool's queues, the highest priority first."""
        queues = (row for row in self.work_queues.values() if row.work_pool_id == pool.id)
        return sorted(queues, key=lambda queue: queue.priority)

    def queue_named(self, pool: records.WorkPool, name: str) -> records.WorkQueue | None:
        """The pool's queue of that name."""
        return first(queue for queue in self.queues_of(pool) if queue.name == name)

    def runs_in(self, queue_id: UUID) -> Iterator[records.FlowRun]:
        """The flow runs of one queue."""
        return (run for run in self.flow_runs.values() if run.work_queue_id == queue_id)

    def parent_of(self, run: records.FlowRun) -> UUID | None:
        """The flow run that has started a run, if one has."""
        task = self.task_runs.get(run.parent_task_run_id) if run.parent_task_run_id else None
        return task.flow_run_id if task is not None else None

    def tasks_of(self, run: records.FlowRun) -> list[UUID]:
        """The task runs of a flow run."""
        return [task.id for task in self.task_runs.values() if task.flow_run_id == run.id]

    def remove_queue(self, queue: records.WorkQueue) -> None:
        """Delete a queue; its deployments and runs stay, without one."""
        del self.work_queues[queue.id]
        for deployment in self.deployments.values():
            if deployment.work_queue_id == queue.id:
                deployment.work_queue_id = deployment.work_queue_name = None
                deployment.work_pool_name = None
        for run in self.runs_in(queue.id):
            run.work_queue_id = run.work_queue_name = None
            run.work_pool_id = run.work_pool_name = None

    def occupied(self, queues: Iterable[records.WorkQueue]) -> int:
        """How many runs of these queues are Pending or Running."""
        states = (run.state for queue in queues for run in self.runs_in(queue.id))
        return sum(1 for state in states if state is not None and state.type in OCCUPYING)

    def propose(
        self, run: records.FlowRun, proposed: records.State, *, force: bool = False
    ) -> transitions.Verdict:
        """Put a proposed state to the rules and do what they say."""
        initial = run.state
        if initial is None:
            verdict = transitions.Verdict(OrchestrationStatus.ACCEPT, proposed)
        else:
            verdict = orchestration.decide(self._transition(run, initial, proposed), force=force)
        self._take_or_free_slot(run, verdict)
        if verdict.policy is not None:
            run.empirical_policy = verdict.policy
        if verdict.state is not None:
            self._write_state(run, self._with_lease(verdict))
        return verdict

    def _transition(
        self, run: records.FlowRun, initial: records.State, proposed: records.State
    ) -> transitions.Transition:
        deployment = self.deployments.get(run.deployment_id) if run.deployment_id else None
        return transitions.Transition(
            run=run,
            initial=initial,
            proposed=proposed,
            now=proposed.timestamp,
            deployment_exists=deployment is not None,
            slots=_slots(deployment) if deployment else None,
        )

    def _take_or_free_slot(self, run: records.FlowRun, verdict: transitions.Verdict) -> None:
        deployment = self.deployments.get(run.deployment_id) if run.deployment_id else None
        limit = deployment.global_concurrency_limit if deployment else None
        if limit is not None:
            change = int(verdict.takes_slot) - int(verdict.frees_slot)
            limit.active_slots = max(limit.active_slots + change, 0)

    def _with_lease(self, verdict: transitions.Verdict) -> records.State:
        assert verdict.state is not None
        if not verdict.takes_slot:
            return verdict.state
        return verdict.state.with_details(deployment_concurrency_lease_id=uuid4())

    def _write_state(self, run: records.FlowRun, state: records.State) -> None:
        initial = run.state
        state = state.with_details(flow_run_id=run.id)
        _set_times(run, initial, state)
        if state.type is StateType.RUNNING and not run.empirical_policy.resuming:
            run.run_count += 1
        run.states.append(state)
        run.updated = state.timestamp
        self.events.append(_state_event(run, initial, state))


def first(rows: Iterable[T]) -> T | None:
    """The first row, if there is one."""
    return next(iter(rows), None)


def _slots(deployment: records.Deployment) -> transitions.Slots | None:
    limit = deployment.global_concurrency_limit
    if limit is None:
        return None
    options = deployment.concurrency_options or {}
    return transitions.Slots(
        limit=limit.limit,
        active=limit.active_slots,
        cancels_new=options.get("collision_strategy") == "CANCEL_NEW",
    )


def _set_times(run: records.FlowRun, initial: records.State | None, state: records.State) -> None:
    scheduled = state.type is StateType.SCHEDULED
    due = state.state_details.scheduled_time if scheduled else None
    if run.expected_start_time is None:
        run.expected_start_time = due or state.timestamp
    if scheduled or (initial is not None and initial.type is StateType.SCHEDULED):
        run.next_scheduled_start_time = due
    if state.is_final:
        run.start_time = run.start_time or state.timestamp
        run.end_time = run.end_time or state.timestamp
        return
    run.end_time = None
    if state.type is StateType.RUNNING:
        run.start_time = run.start_time or state.timestamp


def _state_event(
    run: records.FlowRun, initial: records.State | None, state: records.State
) -> records.Event:
    """What a server tells about every state that it writes; the ids chain the states."""
    related = [
        {"prefect.resource.id": f"prefect.{role}.{identity}", "prefect.resource.role": role}
        for role, identity in (
            ("flow", run.flow_id),
            ("deployment", run.deployment_id),
            ("work-queue", run.work_queue_id),
            ("work-pool", run.work_pool_id),
        )
        if identity is not None
    ]
    return records.Event(
        id=state.id,
        occurred=state.timestamp,
        received=state.timestamp,
        event=f"prefect.flow-run.{state.name}",
        resource={
            "prefect.resource.id": f"prefect.flow-run.{run.id}",
            "prefect.resource.name": run.name,
            "prefect.state-message": state.message or "",
            "prefect.state-name": state.name,
            "prefect.state-type": state.type.value,
        },
        related=related,
        follows=initial.id if initial else None,
    )
