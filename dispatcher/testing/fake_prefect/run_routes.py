"""The fake's routes for flow runs and their states."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

from dispatcher.prefect_api.schemas import OrchestrationStatus, StateType
from dispatcher.testing.fake_prefect import (
    answers,
    bodies,
    filters,
    pool_routes,
    records,
    store,
    transitions,
)

_SORTS: dict[str, Callable[[records.FlowRun], Any]] = {
    "ID": lambda run: str(run.id),
    "NAME": lambda run: run.name,
    "START_TIME": lambda run: (run.start_time is None, run.start_time),
    "END_TIME": lambda run: (run.end_time is None, run.end_time),
    "EXPECTED_START_TIME": lambda run: run.expected_start_time,
    "NEXT_SCHEDULED_START_TIME": lambda run: (
        run.next_scheduled_start_time is None,
        run.next_scheduled_start_time,
    ),
}


def create_run(request: answers.Request) -> answers.Answer:
    """``POST /flow_runs/``; Pending if the body holds no state."""
    body = request.body(bodies.FlowRunCreate)
    queue_id = None
    if body.work_pool_name is not None:
        pool = pool_routes.pool_named(request, body.work_pool_name)
        queue_id = pool.default_queue_id
        if body.work_queue_name is not None:
            queue_id = pool_routes.find_queue(request, pool, body.work_queue_name).id
    return add_run(
        request,
        body,
        body.state or bodies.StateCreate(type=StateType.PENDING),
        flow_id=body.flow_id,
        deployment_id=body.deployment_id,
        infrastructure_pid=body.infrastructure_pid,
        work_queue_id=queue_id,
        labels={"prefect.flow.id": str(body.flow_id), **body.labels},
    )


def add_run(
    request: answers.Request,
    body: bodies.DeploymentFlowRunCreate,
    state: bodies.StateCreate,
    **values: Any,
) -> answers.Answer:
    """Create a run, or answer with the one that has the same flow and idempotency key."""
    known = store.first(
        run
        for run in request.store.flow_runs.values()
        if body.idempotency_key is not None
        and (run.flow_id, run.idempotency_key) == (values["flow_id"], body.idempotency_key)
    )
    if known is not None:
        return answers.Answer(200, known.to_json())
    given = body.model_dump(
        include={
            "parameters",
            "idempotency_key",
            "context",
            "empirical_policy",
            "tags",
            "parent_task_run_id",
        }
    )
    run = request.store.new(
        records.FlowRun, **(given | {"job_variables": body.job_variables} | values), name=""
    )
    run.name = body.name or f"run-{run.id.hex[:8]}"
    request.store.flow_runs[run.id] = run
    _show_pool(request, run)
    request.store.propose(run, state.to_state(request.store.now()), force=True)
    return answers.Answer(201, run.to_json())


def create_task_run(request: answers.Request) -> answers.Answer:
    """``POST /task_runs/``."""
    task = request.store.new(records.TaskRun, **request.body(bodies.TaskRunCreate).model_dump())
    request.store.task_runs[task.id] = task
    return answers.Answer(201, task.to_json())


def read_run(request: answers.Request) -> answers.Answer:
    """``GET /flow_runs/{id}``."""
    return answers.Answer(200, _find_run(request).to_json())


def update_run(request: answers.Request) -> answers.Answer:
    """``PATCH /flow_runs/{id}``."""
    body, run = request.body(bodies.FlowRunUpdate), _find_run(request)
    assert run.state is not None
    if body.job_variables is not None and run.state.type is not StateType.SCHEDULED:
        raise answers.refusal(
            400,
            f"Job variables for a flow run in state {run.state.type.value} cannot be updated",
        )
    for field in body.model_fields_set - {"flow_version"}:
        setattr(run, field, getattr(body, field))
    return answers.Answer(204)


def update_labels(request: answers.Request) -> answers.Answer:
    """``PATCH /flow_runs/{id}/labels``."""
    run = request.store.flow_runs.get(request.id)
    if run is None:
        raise _unknown_run(request.id)
    run.labels = {**run.labels, **request.json}
    return answers.Answer(204)


def delete_run(request: answers.Request) -> answers.Answer:
    """``DELETE /flow_runs/{id}``."""
    del request.store.flow_runs[_find_run(request).id]
    return answers.Answer(204)


def list_runs(request: answers.Request) -> answers.Answer:
    """``POST /flow_runs/filter``."""
    body = request.body(filters.FlowRunsFilter)
    limit = answers.page_limit(body.limit)
    runs = _matching(request, body)[body.offset :][:limit]
    return answers.Answer(200, [run.to_json() for run in runs])


def count_runs(request: answers.Request) -> answers.Answer:
    """``POST /flow_runs/count``."""
    return answers.Answer(200, len(_matching(request, request.body(filters.FlowRunsFilter))))


def list_states(request: answers.Request) -> answers.Answer:
    """``GET /flow_run_states/?flow_run_id=…``: the history, oldest first."""
    run = request.store.flow_runs.get(UUID(request.params["flow_run_id"]))
    states = run.states if run is not None else []
    return answers.Answer(200, [state.model_dump(mode="json") for state in states])


def set_state(request: answers.Request) -> answers.Answer:
    """``POST /flow_runs/{id}/set_state``."""
    body = request.body(bodies.SetState)
    run = request.store.flow_runs.get(request.id)
    if run is None:
        raise _unknown_run(request.id)
    proposed = body.state.to_state(request.store.now())
    verdict = request.store.propose(run, proposed, force=body.force)
    return answers.Answer(200 if verdict.state is None else 201, _verdict_json(run, verdict))


def bulk_set_state(request: answers.Request) -> answers.Answer:
    """``POST /flow_runs/bulk_set_state``: the filter first, then each run by itself."""
    body = request.body(bodies.BulkSetState)
    chosen = _matching(request, filters.FlowRunsFilter(flow_runs=body.flow_runs))[: body.limit]
    results = []
    for run in chosen:
        proposed = body.state.to_state(request.store.now())
        verdict = request.store.propose(run, proposed, force=body.force)
        results.append({"flow_run_id": str(run.id), **_verdict_json(run, verdict)})
    return answers.Answer(200, {"results": results})


def _matching(request: answers.Request, body: filters.FlowRunsFilter) -> list[records.FlowRun]:
    field, _, direction = body.sort.rpartition("_")
    known = request.store
    runs = [
        run
        for run in known.flow_runs.values()
        if body.admits(run) and body.admits_family(known.parent_of(run), known.tasks_of(run))
    ]
    return sorted(runs, key=_SORTS[field], reverse=direction == "DESC")


def _find_run(request: answers.Request) -> records.FlowRun:
    run = request.store.flow_runs.get(request.id)
    if run is None:
        raise answers.not_found("Flow run not found")
    return run


def _unknown_run(flow_run_id: UUID) -> answers.Refusal:
    message = f"Flow run with id {flow_run_id} not found"
    return answers.Refusal(404, {"exception_message": message})


def _show_pool(request: answers.Request, run: records.FlowRun) -> None:
    """Name the run's queue and pool in it, as the server's answers do."""
    queue = request.store.work_queues.get(run.work_queue_id) if run.work_queue_id else None
    if queue is not None:
        run.work_queue_name = queue.name
        run.work_pool_id, run.work_pool_name = queue.work_pool_id, queue.work_pool_name


def _verdict_json(run: records.FlowRun, verdict: transitions.Verdict) -> dict[str, Any]:
    details: dict[str, Any] = {"type": f"{verdict.status.value.lower()}_details"}
    if verdict.status is not OrchestrationStatus.ACCEPT:
        details["reason"] = verdict.reason
    if verdict.delay_seconds is not None:
        details["delay_seconds"] = verdict.delay_seconds
    state = run.state
    return {
        "state": state.model_dump(mode="json") if state else None,
        "status": verdict.status.value,
        "details": details,
    }
