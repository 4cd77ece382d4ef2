"""The fake's routes for work pools, their queues, their workers and polling."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing.fake_prefect import answers, bodies, filters, records

NOT_READY, READY, PAUSED = "NOT_READY", "READY", "PAUSED"


def create_pool(request: answers.Request) -> answers.Answer:
    """``POST /work_pools/``."""
    body, store = request.body(bodies.WorkPoolCreate), request.store
    if body.name.lower().startswith("prefect"):
        raise answers.refusal(
            403, "Work pools starting with 'Prefect' are reserved for internal use."
        )
    if body.name in store.work_pools:
        raise answers.refusal(409, "A work pool with this name already exists.")
    pool = store.new(records.WorkPool, **body.model_dump())
    if pool.is_paused:
        pool.status = PAUSED
    queue = store.new(
        records.WorkQueue, name="default", work_pool_id=pool.id, work_pool_name=pool.name
    )
    pool.default_queue_id = queue.id
    store.work_pools[pool.name] = pool
    store.work_queues[queue.id] = queue
    return answers.Answer(201, _with_slots(request, pool).to_json())


def read_pool(request: answers.Request) -> answers.Answer:
    """``GET /work_pools/{pool}``."""
    return answers.Answer(200, _with_slots(request, find_pool(request)).to_json())


def list_pools(request: answers.Request) -> answers.Answer:
    """``POST /work_pools/filter``, without conditions."""
    body = request.body(filters.Page)
    pools = list(request.store.work_pools.values())[body.offset :][: answers.page_limit(body.limit)]
    return answers.Answer(200, [_with_slots(request, pool).to_json() for pool in pools])


def update_pool(request: answers.Request) -> answers.Answer:
    """``PATCH /work_pools/{pool}``."""
    pool, body = find_pool(request), request.body(bodies.WorkPoolUpdate)
    for field, value in body.model_dump(exclude_unset=True).items():
        setattr(pool, field, value)
    if body.is_paused is not None:
        online = any(key[0] == pool.id for key in request.store.workers)
        pool.status = PAUSED if body.is_paused else READY if online else NOT_READY
    return answers.Answer(204)


def delete_pool(request: answers.Request) -> answers.Answer:
    """``DELETE /work_pools/{pool}``."""
    pool, store = find_pool(request), request.store
    for queue in store.queues_of(pool):
        store.remove_queue(queue)
    del store.work_pools[pool.name]
    return answers.Answer(204)


def create_queue(request: answers.Request) -> answers.Answer:
    """``POST /work_pools/{pool}/queues``."""
    pool, body, store = find_pool(request), request.body(bodies.WorkQueueCreate), request.store
    if store.queue_named(pool, body.name):
        raise answers.refusal(
            409, "A work queue with this name already exists in work pool {work_pool_name!r}."
        )
    queue = add_queue(request, pool, body)
    return answers.Answer(201, _queue_json(request, queue))


def add_queue(
    request: answers.Request, pool: records.WorkPool, body: bodies.WorkQueueCreate
) -> records.WorkQueue:
    """Put a new queue into a pool; those from its priority on step back by one."""
    store = request.store
    queues = store.queues_of(pool)
    priority = body.priority or max((queue.priority for queue in queues), default=0) + 1
    values = body.model_dump() | {"priority": priority}
    queue = store.new(records.WorkQueue, work_pool_id=pool.id, work_pool_name=pool.name, **values)
    _make_room(queues, priority)
    store.work_queues[queue.id] = queue
    return queue


def read_queue(request: answers.Request) -> answers.Answer:
    """``GET /work_pools/{pool}/queues/{queue}``."""
    return answers.Answer(200, _queue_json(request, _find_queue(request)))


def list_queues(request: answers.Request) -> answers.Answer:
    """``POST /work_pools/{pool}/queues/filter``."""
    pool, body = find_pool(request), request.body(filters.Page)
    queues = request.store.queues_of(pool)[body.offset :][: answers.page_limit(body.limit)]
    return answers.Answer(200, [_queue_json(request, queue) for queue in queues])


def update_queue(request: answers.Request) -> answers.Answer:
    """``PATCH /work_pools/{pool}/queues/{queue}``."""
    queue, body = _find_queue(request), request.body(bodies.WorkQueueUpdate)
    if body.priority is not None and body.priority != queue.priority:
        others = (row for row in request.store.queues_of(find_pool(request)) if row is not queue)
        _make_room(others, body.priority)
    for field, value in body.model_dump(exclude_unset=True).items():
        setattr(queue, field, value)
    if body.is_paused is not None:
        queue.status = PAUSED if body.is_paused else NOT_READY
    return answers.Answer(204)


def delete_queue(request: answers.Request) -> answers.Answer:
    """``DELETE /work_pools/{pool}/queues/{queue}``."""
    request.store.remove_queue(_find_queue(request))
    return answers.Answer(204)


def heartbeat(request: answers.Request) -> answers.Answer:
    """``POST /work_pools/{pool}/workers/heartbeat``."""
    pool, store = find_pool(request), request.store
    body = request.body(bodies.Heartbeat)
    key = (pool.id, body.name)
    known = store.workers.get(key)
    now = store.now()
    store.workers[key] = store.new(
        records.Worker,
        **({"id": known.id} if known else {}),
        name=body.name,
        work_pool_id=pool.id,
        last_heartbeat_time=now,
        heartbeat_interval_seconds=body.heartbeat_interval_seconds,
    )
    if pool.status == NOT_READY:
        pool.status = READY
    return answers.Answer(204)


def list_workers(request: answers.Request) -> answers.Answer:
    """``POST /work_pools/{pool}/workers/filter``."""
    pool, body = find_pool(request), request.body(filters.Page)
    workers = [row for row in request.store.workers.values() if row.work_pool_id == pool.id]
    page = workers[body.offset :][: answers.page_limit(body.limit)]
    return answers.Answer(200, [worker.to_json() for worker in page])


def delete_worker(request: answers.Request) -> answers.Answer:
    """``DELETE /work_pools/{pool}/workers/{worker}``."""
    key = (find_pool(request).id, request.names["worker"])
    if request.store.workers.pop(key, None) is None:
        raise answers.not_found("Worker not found.")
    return answers.Answer(204)


def poll(request: answers.Request) -> answers.Answer:
    """``POST /work_pools/{pool}/get_scheduled_flow_runs``.

    Pauses and limits of the pool and its queues act here and nowhere else.
    """
    body, store = request.body(filters.Poll), request.store
    limit = answers.page_limit(body.limit)
    pool = find_pool(request)
    queues = [find_queue(request, pool, name) for name in body.work_queue_names or ()]
    queues = sorted(queues, key=lambda row: row.priority) or store.queues_of(pool)
    now = store.now()
    for queue in queues:
        queue.last_polled = now
        if queue.status == NOT_READY:
            queue.status = READY
    due = [] if pool.is_paused else _due_by_queue(request, queues, body)
    due = due[: _free_slots(request, pool.concurrency_limit, store.queues_of(pool))]
    return answers.Answer(200, [_poll_row(pool, run) for run in due[:limit]])


def _due_by_queue(
    request: answers.Request, queues: Sequence[records.WorkQueue], body: filters.Poll
) -> list[records.FlowRun]:
    return [
        run
        for queue in queues
        if not queue.is_paused
        for run in due_runs(
            request.store.runs_in(queue.id), body.scheduled_before, body.scheduled_after
        )[: _free_slots(request, queue.concurrency_limit, [queue])]
    ]


def due_runs(
    runs: Iterable[records.FlowRun],
    scheduled_before: datetime | None,
    scheduled_after: datetime | None,
) -> list[records.FlowRun]:
    """The runs that a poll may show, the earliest first."""
    due = [
        (run.next_scheduled_start_time, run)
        for run in runs
        if run.state is not None
        and run.state.type is StateType.SCHEDULED
        and run.next_scheduled_start_time is not None
        # Its own engine waits to go on with such a run.
        and run.empirical_policy.retry_type != "in_process"
    ]
    return [
        run
        for time, run in sorted(due, key=lambda pair: pair[0])
        if (scheduled_before is None or time <= scheduled_before)
        and (scheduled_after is None or time >= scheduled_after)
    ]


def find_pool(request: answers.Request) -> records.WorkPool:
    """The pool in the path, or a 404."""
    return pool_named(request, request.names["pool"])


def pool_named(request: answers.Request, name: str) -> records.WorkPool:
    """The pool of that name, or a 404."""
    pool = request.store.work_pools.get(name)
    if pool is None:
        raise answers.not_found(f'Work pool "{name}" not found.')
    return pool


def find_queue(request: answers.Request, pool: records.WorkPool, name: str) -> records.WorkQueue:
    """The pool's queue of that name, or a 404."""
    queue = request.store.queue_named(pool, name)
    if queue is None:
        raise answers.not_found(f"Work pool queue '{pool.name}/{name}' not found.")
    return queue


def _find_queue(request: answers.Request) -> records.WorkQueue:
    # The server looks the queue up by both names at once, and so misses it, not the pool.
    pool = request.store.work_pools.get(request.names["pool"])
    name = request.names["queue"]
    if pool is None:
        raise answers.not_found(f"Work pool queue '{request.names['pool']}/{name}' not found.")
    return find_queue(request, pool, name)


def _free_slots(
    request: answers.Request, limit: int | None, queues: Sequence[records.WorkQueue]
) -> int | None:
    """How many runs more may start; ``None`` for any number."""
    return None if limit is None else max(limit - request.store.occupied(queues), 0)


def _make_room(queues: Iterable[records.WorkQueue], priority: int) -> None:
    for queue in queues:
        if queue.priority < priority:
            continue
        if queue.priority > priority:
            return
        priority += 1
        queue.priority = priority


def _with_slots(request: answers.Request, pool: records.WorkPool) -> records.WorkPool:
    if pool.concurrency_limit is None:
        return pool.model_copy(update={"active_slots": None})
    occupied = request.store.occupied(request.store.queues_of(pool))
    return pool.model_copy(update={"active_slots": occupied})


def _queue_json(request: answers.Request, queue: records.WorkQueue) -> object:
    occupied = None
    if queue.concurrency_limit is not None:
        occupied = request.store.occupied([queue])
    return queue.model_copy(update={"active_slots": occupied}).to_json()


def _poll_row(pool: records.WorkPool, run: records.FlowRun) -> object:
    """A run as a poll shows it: without its state and its queue's name."""
    hidden = {"state": None, "work_queue_name": None}
    shown = {**run.to_json(), **hidden}
    del shown["work_pool_name"], shown["work_pool_id"]
    return {
        "work_pool_id": str(pool.id),
        "work_queue_id": str(run.work_queue_id),
        "flow_run": shown,
    }
