"""The calls to the Prefect API, one method each, typed on both sides.

Follows Prefect's own REST routes. Verdicts on a proposed state (WAIT, REJECT, ABORT) are values;
every method raises the errors of :meth:`dispatcher.prefect_api.transport.Transport.request`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

from dispatcher import errors
from dispatcher.prefect_api import schemas
from dispatcher.prefect_api import transport as transports

T = TypeVar("T")

PAGE_LIMIT = 200  # the most rows a Prefect server returns at once
BULK_LIMIT = 50  # the most runs a bulk_set_state touches

_FLOW_RUN = "/flow_runs/{id}"
_WORK_POOL = "/work_pools/{pool}"
_WORK_QUEUES = "/work_pools/{pool}/queues"


class PrefectClient:
    """A Prefect server's API, self-hosted or Cloud."""

    def __init__(self, transport: transports.Transport) -> None:
        self.transport = transport

    # The server

    def now(self) -> datetime:
        """The server's time, as far as its answers so far have told it."""
        return self.transport.server_clock.now()

    def is_healthy(self) -> bool:
        """Whether the server answers now; asks once and raises nothing."""
        try:
            answer = self.transport.request("GET", "/health", max_attempts=1)
        except errors.ApiError:
            return False
        return answer is True

    def read_api_version(self) -> str:
        """The version of the REST API, such as ``0.8.4``."""
        return str(self.transport.request("GET", "/version"))

    def read_server_version(self) -> str:
        """The version of Prefect on the server, such as ``3.8.8``."""
        return str(self.transport.request("GET", "/admin/version"))

    # Work pools, queues, workers

    def read_work_pool(self, name: str) -> schemas.WorkPool:
        """Read a work pool; raises :exc:`~dispatcher.errors.ObjectNotFound` if there is none."""
        body = self.transport.request("GET", _WORK_POOL, names={"pool": name})
        return schemas.WorkPool.model_validate(body)

    def list_work_pool_names(self) -> list[str]:
        """The names of all work pools."""
        names: list[str] = []
        while True:
            page = {"limit": PAGE_LIMIT, "offset": len(names)}
            rows = self.transport.request("POST", "/work_pools/filter", json=page)
            names += [str(row["name"]) for row in rows]
            if len(rows) < PAGE_LIMIT:
                return names

    def create_work_pool(
        self,
        name: str,
        type: str,  # noqa: A002 (Prefect's word)
        base_job_template: Mapping[str, Any] | None = None,
        description: str | None = None,
    ) -> schemas.WorkPool:
        """Create a work pool.

        Raises:
            ObjectAlreadyExists: someone was quicker; read it instead.
        """
        body = {"name": name, "type": type, "base_job_template": dict(base_job_template or {})}
        if description is not None:
            body["description"] = description
        answer = self.transport.request("POST", "/work_pools/", json=body)
        return schemas.WorkPool.model_validate(answer)

    def update_work_pool_template(self, name: str, base_job_template: Mapping[str, Any]) -> None:
        """Replace a work pool's base job template."""
        self.transport.request(
            "PATCH",
            _WORK_POOL,
            names={"pool": name},
            json={"base_job_template": dict(base_job_template)},
        )

    def read_work_queues(self, pool: str) -> list[schemas.WorkQueue]:
        """All queues of a pool, the highest priority first."""
        rows = self._all_pages(_WORK_QUEUES + "/filter", {"pool": pool})
        return [schemas.WorkQueue.model_validate(row) for row in rows]

    def read_work_queue(self, pool: str, queue: str) -> schemas.WorkQueue:
        """Read one queue of a pool."""
        body = self.transport.request(
            "GET", _WORK_QUEUES + "/{queue}", names={"pool": pool, "queue": queue}
        )
        return schemas.WorkQueue.model_validate(body)

    def send_worker_heartbeat(self, pool: str, worker_name: str, interval_seconds: float) -> None:
        """Say that a worker of the pool is alive.

        The server takes the worker for offline three intervals after its last heartbeat.
        """
        self.transport.request(
            "POST",
            _WORK_POOL + "/workers/heartbeat",
            names={"pool": pool},
            json={
                "name": worker_name,
                "heartbeat_interval_seconds": max(round(interval_seconds), 1),
            },
        )

    def read_workers(self, pool: str) -> list[schemas.Worker]:
        """All workers that ever sent a heartbeat to the pool."""
        rows = self._all_pages(_WORK_POOL + "/workers/filter", {"pool": pool})
        return [schemas.Worker.model_validate(row) for row in rows]

    def get_scheduled_flow_runs(
        self,
        pool: str,
        *,
        work_queue_names: Sequence[str] = (),
        scheduled_before: datetime | None = None,
        limit: int | None = None,
    ) -> list[schemas.ScheduledFlowRun]:
        """The runs that the pool would have started next, most urgent first.

        Neither a lock nor a reservation: every caller sees them until someone claims them. Without
        queue names all queues count, without ``scheduled_before`` future runs are included.

        Raises:
            ObjectNotFound: the pool, or any one of the queues, does not exist.
        """
        body: dict[str, Any] = {"work_queue_names": list(work_queue_names)}
        if scheduled_before is not None:
            body["scheduled_before"] = scheduled_before.isoformat()
        if limit is not None:
            body["limit"] = limit
        rows = self.transport.request(
            "POST", _WORK_POOL + "/get_scheduled_flow_runs", names={"pool": pool}, json=body
        )
        return [schemas.ScheduledFlowRun.model_validate(row) for row in rows]

    # Flow runs

    def read_flow_run(self, flow_run_id: UUID) -> schemas.FlowRun:
        """Read a flow run with its state."""
        body = self.transport.request("GET", _FLOW_RUN, names={"id": str(flow_run_id)})
        return schemas.FlowRun.model_validate(body)

    def read_flow_runs(
        self,
        flow_run_filter: schemas.FlowRunFilter,
        *,
        limit: int = PAGE_LIMIT,
        offset: int = 0,
        sort: str | None = None,
    ) -> list[schemas.FlowRun]:
        """One page of the flow runs that match; ``sort`` is Prefect's, ``ID_DESC`` if not given."""
        body = {**flow_run_filter.to_body(), "limit": limit, "offset": offset}
        if sort is not None:
            body["sort"] = sort
        rows = self.transport.request("POST", "/flow_runs/filter", json=body)
        return [schemas.FlowRun.model_validate(row) for row in rows]

    def flow_run_pages(
        self, flow_run_filter: schemas.FlowRunFilter
    ) -> Iterator[list[schemas.FlowRun]]:
        """Every page of the flow runs that match, the last one of them not full."""
        for offset in itertools.count(0, PAGE_LIMIT):
            page = self.read_flow_runs(flow_run_filter, offset=offset)
            yield page
            if len(page) < PAGE_LIMIT:
                return

    def read_flow_run_states(self, flow_run_id: UUID) -> list[schemas.State]:
        """All states that a run has had, the oldest first."""
        params = {"flow_run_id": str(flow_run_id)}
        rows = self.transport.request("GET", "/flow_run_states/", params=params)
        return [schemas.State.model_validate(row) for row in rows]

    def set_flow_run_state(
        self, flow_run_id: UUID, proposal: schemas.StateProposal, *, force: bool = False
    ) -> schemas.OrchestrationResult:
        """Propose a state; the result tells what became of it.

        The body, its transition id included, is built once, so a repeated request cannot make the
        transition twice: the answer is then REJECT with a state that carries that id.
        """
        answer = self.transport.request(
            "POST",
            _FLOW_RUN + "/set_state",
            names={"id": str(flow_run_id)},
            json={"state": proposal.to_body(), "force": force},
        )
        return schemas.OrchestrationResult.from_body(answer)

    def bulk_set_flow_run_state(
        self,
        flow_run_ids: Collection[UUID],
        proposal: schemas.StateProposal,
        *,
        only_state_types: Collection[schemas.StateType] = (),
        force: bool = False,
    ) -> list[schemas.OrchestrationResult]:
        """Propose one state for several runs, only for those now in ``only_state_types`` if given.

        A run that is not in such a state, or does not exist, has no result. Nor has one whose
        transition was made by a request whose answer was lost: its state carries the proposal's
        ``transition_id``, so give one where that matters. Prefect 3.8 mixes up the details of the
        states (scheduled time, concurrency lease) of runs that become Pending in one request.

        Raises:
            BulkNotSupported: the server is older than 3.6.16.
        """
        state, results = proposal.to_body(), []
        for ids in _chunks(flow_run_ids, BULK_LIMIT):
            chosen = schemas.FlowRunFilter(ids=ids, state_types=only_state_types)
            body = {**chosen.to_body(), "state": state, "force": force, "limit": BULK_LIMIT}
            results += self._bulk_set_state(body)
        return results

    def update_infrastructure_pid(self, flow_run_id: UUID, infrastructure_pid: str) -> None:
        """Note where the run's job is."""
        self.transport.request(
            "PATCH",
            _FLOW_RUN,
            names={"id": str(flow_run_id)},
            json={"infrastructure_pid": infrastructure_pid},
        )

    def update_flow_run_labels(self, flow_run_id: UUID, labels: Mapping[str, Any]) -> None:
        """Merge labels into the run's.

        Raises:
            ObjectNotFound: no such run, or the server is older than 3.1.6 and knows no labels.
        """
        self.transport.request(
            "PATCH", _FLOW_RUN + "/labels", names={"id": str(flow_run_id)}, json=dict(labels)
        )

    # What a run is made of

    def read_deployment(self, deployment_id: UUID) -> schemas.Deployment:
        """Read a deployment."""
        body = self.transport.request("GET", "/deployments/{id}", names={"id": str(deployment_id)})
        return schemas.Deployment.model_validate(body)

    def read_flow(self, flow_id: UUID) -> schemas.Flow:
        """Read a flow."""
        body = self.transport.request("GET", "/flows/{id}", names={"id": str(flow_id)})
        return schemas.Flow.model_validate(body)

    def read_block_document(self, type_slug: str, name: str) -> schemas.BlockDocument | None:
        """Read a block document with its secrets in clear; ``None`` if there is none."""
        return self._block_document(
            "/block_types/slug/{slug}/block_documents/name/{name}",
            {"slug": type_slug, "name": name},
        )

    def read_block_document_by_id(self, block_document_id: UUID) -> schemas.BlockDocument | None:
        """Read a block document with its secrets in clear; ``None`` if there is none."""
        return self._block_document("/block_documents/{id}", {"id": str(block_document_id)})

    def read_variable(self, name: str) -> schemas.Variable | None:
        """Read a variable; ``None`` if there is none, which is not the same as one set to null."""

        def read() -> schemas.Variable:
            body = self.transport.request("GET", "/variables/name/{name}", names={"name": name})
            return schemas.Variable.model_validate(body)

        return _found(read)

    # What is reported

    def create_logs(self, entries: Sequence[schemas.LogEntry]) -> None:
        """Add lines to runs' logs; nothing is sent for an empty list."""
        if entries:
            body = [entry.model_dump(mode="json", exclude_none=True) for entry in entries]
            self.transport.request("POST", "/logs/", json=body)

    def create_events(self, events: Sequence[schemas.Event]) -> None:
        """Emit events; nothing is sent for an empty list."""
        if events:
            body = [event.model_dump(mode="json") for event in events]
            self.transport.request("POST", "/events", json=body)

    def _bulk_set_state(self, body: Mapping[str, Any]) -> list[schemas.OrchestrationResult]:
        try:
            answer = self.transport.request("POST", "/flow_runs/bulk_set_state", json=body)
        except errors.ApiResponseError as error:
            # Run ids that do not exist are no error here, so this is about the route.
            if error.status_code not in {404, 405}:
                raise
            raise errors.BulkNotSupported(
                status_code=error.status_code, detail=error.detail
            ) from error
        return [schemas.OrchestrationResult.from_body(row) for row in answer["results"]]

    def _block_document(self, route: str, names: Mapping[str, str]) -> schemas.BlockDocument | None:
        def read() -> schemas.BlockDocument:
            # Without this the server sends asterisks for secrets, and says nothing about it.
            params = {"include_secrets": "true"}
            body = self.transport.request("GET", route, names=names, params=params)
            return schemas.BlockDocument.model_validate(body)

        return _found(read)

    def _all_pages(self, route: str, names: Mapping[str, str]) -> Iterator[Any]:
        for offset in itertools.count(0, PAGE_LIMIT):
            body = {"limit": PAGE_LIMIT, "offset": offset}
            rows = self.transport.request("POST", route, names=names, json=body)
            yield from rows
            if len(rows) < PAGE_LIMIT:
                return


def _found(read: Callable[[], T]) -> T | None:
    try:
        return read()
    except errors.ObjectNotFound:
        return None


def _chunks(items: Collection[T], size: int) -> Iterator[list[T]]:
    rest = iter(items)
    while chunk := list(itertools.islice(rest, size)):
        yield chunk
