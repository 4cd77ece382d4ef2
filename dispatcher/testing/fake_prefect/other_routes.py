"""The fake's routes for flows, deployments, variables, blocks, logs and events."""

from __future__ import annotations

import copy
import hashlib
import json
from typing import Any
from uuid import UUID

from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing.fake_prefect import (
    answers,
    bodies,
    filters,
    pool_routes,
    records,
    run_routes,
    store,
)

API_VERSION = "0.8.4"
SERVER_VERSION = "3.8.8"
MASK = "********"


def health(_: answers.Request) -> answers.Answer:
    """``GET /health``."""
    return answers.Answer(200, True)


def ready(_: answers.Request) -> answers.Answer:
    """``GET /ready``."""
    return answers.Answer(200, {"message": "OK"})


def api_version(_: answers.Request) -> answers.Answer:
    """``GET /version``."""
    return answers.Answer(200, API_VERSION)


def server_version(_: answers.Request) -> answers.Answer:
    """``GET /admin/version``."""
    return answers.Answer(200, SERVER_VERSION)


def csrf_token(_: answers.Request) -> answers.Answer:
    """``GET /csrf-token``."""
    raise answers.refusal(422, "CSRF protection is disabled.")


def create_flow(request: answers.Request) -> answers.Answer:
    """``POST /flows/``: the flow of that name, a new one if need be."""
    body = request.body(bodies.FlowCreate)
    known = store.first(flow for flow in request.store.flows.values() if flow.name == body.name)
    if known is not None:
        return answers.Answer(200, known.to_json())
    flow = request.store.new(records.Flow, **body.model_dump())
    request.store.flows[flow.id] = flow
    return answers.Answer(201, flow.to_json())


def read_flow(request: answers.Request) -> answers.Answer:
    """``GET /flows/{id}``."""
    flow = request.store.flows.get(request.id)
    if flow is None:
        raise answers.not_found("Flow not found")
    return answers.Answer(200, flow.to_json())


def create_deployment(request: answers.Request) -> answers.Answer:
    """``POST /deployments/``; one of the same flow and name is replaced and keeps its id."""
    body = request.body(bodies.DeploymentCreate)
    known = _deployment_named(request, body.flow_id, body.name)
    values = body.model_dump(exclude={"concurrency_limit"}) | _queue_values(request, body)
    deployment = request.store.new(
        records.Deployment,
        **({"id": known.id} if known else {}),
        **values,
        labels={"prefect.flow.id": str(body.flow_id)},
    )
    if body.concurrency_limit is not None:
        deployment.global_concurrency_limit = request.store.new(
            records.ConcurrencyLimit,
            name=f"deployment:{deployment.id}",
            limit=body.concurrency_limit,
        )
    request.store.deployments[deployment.id] = deployment
    return answers.Answer(200 if known else 201, deployment.to_json())


def read_deployment(request: answers.Request) -> answers.Answer:
    """``GET /deployments/{id}``."""
    return answers.Answer(200, _find_deployment(request).to_json())


def delete_deployment(request: answers.Request) -> answers.Answer:
    """``DELETE /deployments/{id}``: its Scheduled runs go with it, others stay."""
    deployment, runs = _find_deployment(request), request.store.flow_runs
    del request.store.deployments[deployment.id]
    for run in list(runs.values()):
        scheduled = run.state is not None and run.state.type is StateType.SCHEDULED
        if run.deployment_id == deployment.id and scheduled:
            del runs[run.id]
    return answers.Answer(204)


def create_deployment_run(request: answers.Request) -> answers.Answer:
    """``POST /deployments/{id}/create_flow_run``; Scheduled now if the body holds no state."""
    body, deployment = request.body(bodies.DeploymentFlowRunCreate), _find_deployment(request)
    queue_id = deployment.work_queue_id
    if body.work_queue_name is not None:
        queue_id = _queue_of_run(request, deployment, body.work_queue_name).id
    return run_routes.add_run(
        request,
        body,
        body.state or bodies.StateCreate(type=StateType.SCHEDULED),
        flow_id=deployment.flow_id,
        deployment_id=deployment.id,
        work_queue_id=queue_id,
        parameters={**deployment.parameters, **body.parameters},
        tags=sorted({*deployment.tags, *body.tags}),
        labels={
            "prefect.flow.id": str(deployment.flow_id),
            "prefect.deployment.id": str(deployment.id),
            **body.labels,
        },
    )


def read_concurrency_limit(request: answers.Request) -> answers.Answer:
    """``GET /v2/concurrency_limits/deployment:{id}``."""
    return answers.Answer(200, _find_limit(request).to_json())


def update_concurrency_limit(request: answers.Request) -> answers.Answer:
    """``PATCH /v2/concurrency_limits/deployment:{id}``."""
    limit, body = _find_limit(request), request.body(bodies.ConcurrencyLimitUpdate)
    for field in body.model_fields_set:
        setattr(limit, field, getattr(body, field))
    return answers.Answer(204)


def create_variable(request: answers.Request) -> answers.Answer:
    """``POST /variables/``."""
    body = request.body(bodies.VariableCreate)
    if body.name in request.store.variables:
        raise answers.refusal(409, f"A variable with the name '{body.name}' already exists.")
    variable = request.store.new(records.Variable, **body.model_dump())
    request.store.variables[variable.name] = variable
    return answers.Answer(201, variable.to_json())


def read_variable(request: answers.Request) -> answers.Answer:
    """``GET /variables/name/{name}``."""
    return answers.Answer(200, _find_variable(request).to_json())


def update_variable(request: answers.Request) -> answers.Answer:
    """``PATCH /variables/name/{name}``."""
    variable, body = _find_variable(request), request.body(bodies.VariableUpdate)
    for field in body.model_fields_set:
        setattr(variable, field, getattr(body, field))
    return answers.Answer(204)


def delete_variable(request: answers.Request) -> answers.Answer:
    """``DELETE /variables/name/{name}``."""
    del request.store.variables[_find_variable(request).name]
    return answers.Answer(204)


def create_block_type(request: answers.Request) -> answers.Answer:
    """``POST /block_types/``."""
    block_type = request.store.new(
        records.BlockType, **request.body(bodies.BlockTypeCreate).model_dump()
    )
    request.store.block_types[block_type.id] = block_type
    return answers.Answer(201, block_type.to_json())


def create_block_schema(request: answers.Request) -> answers.Answer:
    """``POST /block_schemas/``."""
    body = request.body(bodies.BlockSchemaCreate)
    digest = hashlib.sha256(json.dumps(body.fields, sort_keys=True).encode()).hexdigest()
    schema = request.store.new(
        records.BlockSchema,
        **body.model_dump(),
        block_type=request.store.block_types[body.block_type_id],
        checksum=f"sha256:{digest}",
    )
    request.store.block_schemas[schema.id] = schema
    return answers.Answer(201, schema.to_json())


def create_block_document(request: answers.Request) -> answers.Answer:
    """``POST /block_documents/``."""
    body = request.body(bodies.BlockDocumentCreate)
    block_type = request.store.block_types[body.block_type_id]
    document = request.store.new(
        records.BlockDocument,
        **body.model_dump(),
        block_schema=request.store.block_schemas[body.block_schema_id],
        block_type=block_type,
        block_type_name=block_type.name,
    )
    request.store.block_documents[document.id] = document
    return answers.Answer(201, _document_json(request, document))


def read_block_document(request: answers.Request) -> answers.Answer:
    """``GET /block_documents/{id}``."""
    return _document_answer(request, request.store.block_documents.get(request.id))


def read_block_document_by_name(request: answers.Request) -> answers.Answer:
    """``GET /block_types/slug/{slug}/block_documents/name/{name}``."""
    wanted = (request.names["slug"], request.names["name"])
    documents = request.store.block_documents.values()
    found = store.first(row for row in documents if (row.block_type.slug, row.name) == wanted)
    return _document_answer(request, found)


def create_logs(request: answers.Request) -> answers.Answer:
    """``POST /logs/``; one bad line and none is taken."""
    request.store.logs += [
        request.store.new(records.Log, **row.model_dump()) for row in request.rows(bodies.LogCreate)
    ]
    return answers.Answer(201)


def list_logs(request: answers.Request) -> answers.Answer:
    """``POST /logs/filter``."""
    body = request.body(filters.LogsFilter)
    rows = [row for row in request.store.logs if body.logs.flow_run_id.admits(row.flow_run_id)]
    rows.sort(key=lambda row: row.timestamp, reverse=body.sort == "TIMESTAMP_DESC")
    page = rows[body.offset :][: answers.page_limit(body.limit)]
    return answers.Answer(200, [row.to_json() for row in page])


def create_events(request: answers.Request) -> answers.Answer:
    """``POST /events``; an event whose id is known already is not taken again."""
    known = {event.id for event in request.store.events}
    rows = request.rows(bodies.EventCreate)
    received = request.store.now()
    request.store.events += [
        records.Event(**row.model_dump(), received=received) for row in rows if row.id not in known
    ]
    return answers.Answer(204)


def list_events(request: answers.Request) -> answers.Answer:
    """``POST /events/filter`` by event name and by resource."""
    body = request.body(filters.EventsFilter)
    rows = [event for event in request.store.events if _is_wanted(event, body.filter)]
    rows.sort(key=lambda event: event.occurred, reverse=body.filter.order == "DESC")
    page = [event.to_json() for event in rows[: body.limit]]
    return answers.Answer(200, {"events": page, "total": len(rows), "next_page": None})


def _find_deployment(request: answers.Request) -> records.Deployment:
    deployment = request.store.deployments.get(request.id)
    if deployment is None:
        raise answers.not_found("Deployment not found")
    return deployment


def _find_limit(request: answers.Request) -> records.ConcurrencyLimit:
    deployment = request.store.deployments.get(request.id)
    limit = deployment.global_concurrency_limit if deployment else None
    if limit is None:
        raise answers.not_found("Concurrency Limit not found")
    return limit


def _deployment_named(
    request: answers.Request, flow_id: UUID, name: str
) -> records.Deployment | None:
    rows = request.store.deployments.values()
    return store.first(row for row in rows if (row.flow_id, row.name) == (flow_id, name))


def _queue_values(request: answers.Request, body: bodies.DeploymentCreate) -> dict[str, Any]:
    if body.work_pool_name is None:
        return {}
    pool = pool_routes.pool_named(request, body.work_pool_name)
    name = body.work_queue_name or "default"
    queue = _queue_or_new(request, pool, name)
    return {"work_queue_id": queue.id, "work_queue_name": queue.name}


def _queue_of_run(
    request: answers.Request, deployment: records.Deployment, name: str
) -> records.WorkQueue:
    if deployment.work_pool_name is None:
        raise answers.refusal(
            400, f"Cannot create flow run in work queue {name}: there is no work pool."
        )
    return _queue_or_new(request, pool_routes.pool_named(request, deployment.work_pool_name), name)


def _queue_or_new(request: answers.Request, pool: records.WorkPool, name: str) -> records.WorkQueue:
    """The queue of that name; deployments and their runs create what is missing."""
    return request.store.queue_named(pool, name) or pool_routes.add_queue(
        request, pool, bodies.WorkQueueCreate(name=name)
    )


def _find_variable(request: answers.Request) -> records.Variable:
    variable = request.store.variables.get(request.names["name"])
    if variable is None:
        raise answers.not_found("Variable not found.")
    return variable


def _document_answer(
    request: answers.Request, document: records.BlockDocument | None
) -> answers.Answer:
    if document is None:
        raise answers.not_found("Block document not found")
    return answers.Answer(200, _document_json(request, document))


def _document_json(request: answers.Request, document: records.BlockDocument) -> dict[str, Any]:
    """A document; its secrets are masked unless the request asks for them."""
    shown = document.to_json()
    if request.params.get("include_secrets", "").lower() == "true":
        return shown
    data = copy.deepcopy(shown["data"])
    for path in document.block_schema.fields.get("secret_fields", ()):
        _mask(data, path.split("."))
    return {**shown, "data": data}


def _mask(data: Any, path: list[str]) -> None:
    *outer, last = path
    for key in outer:
        data = data.get(key) if isinstance(data, dict) else None
    if isinstance(data, dict) and data.get(last) is not None:
        data[last] = MASK


def _is_wanted(event: records.Event, wanted: filters.EventsPart) -> bool:
    names, ids = wanted.event.name, wanted.any_resource.id
    resources = {row.get("prefect.resource.id") for row in (event.resource, *event.related)}
    return (names is None or event.event in names) and (
        ids is None or not resources.isdisjoint(ids)
    )
