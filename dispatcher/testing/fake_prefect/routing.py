"""Which function of the fake Prefect API answers which request."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from dispatcher.testing.fake_prefect import answers, other_routes, pool_routes, run_routes

_UUID = r"[0-9a-fA-F]{8}-?(?:[0-9a-fA-F]{4}-?){3}[0-9a-fA-F]{12}"

_TABLE: dict[tuple[str, str], answers.Handler] = {
    ("GET", "/health"): other_routes.health,
    ("GET", "/ready"): other_routes.ready,
    ("GET", "/version"): other_routes.api_version,
    ("GET", "/admin/version"): other_routes.server_version,
    ("GET", "/csrf-token"): other_routes.csrf_token,
    ("POST", "/work_pools/"): pool_routes.create_pool,
    ("POST", "/work_pools/filter"): pool_routes.list_pools,
    ("GET", "/work_pools/{pool}"): pool_routes.read_pool,
    ("PATCH", "/work_pools/{pool}"): pool_routes.update_pool,
    ("DELETE", "/work_pools/{pool}"): pool_routes.delete_pool,
    ("POST", "/work_pools/{pool}/get_scheduled_flow_runs"): pool_routes.poll,
    ("POST", "/work_pools/{pool}/queues"): pool_routes.create_queue,
    ("POST", "/work_pools/{pool}/queues/filter"): pool_routes.list_queues,
    ("GET", "/work_pools/{pool}/queues/{queue}"): pool_routes.read_queue,
    ("PATCH", "/work_pools/{pool}/queues/{queue}"): pool_routes.update_queue,
    ("DELETE", "/work_pools/{pool}/queues/{queue}"): pool_routes.delete_queue,
    ("POST", "/work_pools/{pool}/workers/heartbeat"): pool_routes.heartbeat,
    ("POST", "/work_pools/{pool}/workers/filter"): pool_routes.list_workers,
    ("DELETE", "/work_pools/{pool}/workers/{worker}"): pool_routes.delete_worker,
    ("POST", "/flows/"): other_routes.create_flow,
    ("GET", "/flows/{id}"): other_routes.read_flow,
    ("POST", "/deployments/"): other_routes.create_deployment,
    ("GET", "/deployments/{id}"): other_routes.read_deployment,
    ("DELETE", "/deployments/{id}"): other_routes.delete_deployment,
    ("POST", "/deployments/{id}/create_flow_run"): other_routes.create_deployment_run,
    ("GET", "/v2/concurrency_limits/deployment:{id}"): other_routes.read_concurrency_limit,
    ("PATCH", "/v2/concurrency_limits/deployment:{id}"): other_routes.update_concurrency_limit,
    ("POST", "/task_runs/"): run_routes.create_task_run,
    ("POST", "/flow_runs/"): run_routes.create_run,
    ("POST", "/flow_runs/filter"): run_routes.list_runs,
    ("POST", "/flow_runs/count"): run_routes.count_runs,
    ("POST", "/flow_runs/bulk_set_state"): run_routes.bulk_set_state,
    ("GET", "/flow_runs/{id}"): run_routes.read_run,
    ("PATCH", "/flow_runs/{id}"): run_routes.update_run,
    ("DELETE", "/flow_runs/{id}"): run_routes.delete_run,
    ("PATCH", "/flow_runs/{id}/labels"): run_routes.update_labels,
    ("POST", "/flow_runs/{id}/set_state"): run_routes.set_state,
    ("GET", "/flow_run_states/"): run_routes.list_states,
    ("POST", "/variables/"): other_routes.create_variable,
    ("GET", "/variables/name/{name}"): other_routes.read_variable,
    ("PATCH", "/variables/name/{name}"): other_routes.update_variable,
    ("DELETE", "/variables/name/{name}"): other_routes.delete_variable,
    ("POST", "/block_types/"): other_routes.create_block_type,
    ("GET", "/block_types/slug/{slug}/block_documents/name/{name}"): (
        other_routes.read_block_document_by_name
    ),
    ("POST", "/block_schemas/"): other_routes.create_block_schema,
    ("POST", "/block_documents/"): other_routes.create_block_document,
    ("GET", "/block_documents/{id}"): other_routes.read_block_document,
    ("POST", "/logs/"): other_routes.create_logs,
    ("POST", "/logs/filter"): other_routes.list_logs,
    ("POST", "/events"): other_routes.create_events,
    ("POST", "/events/filter"): other_routes.list_events,
}


@dataclass(frozen=True)
class Match:
    """A route and the parts of the path that filled its placeholders."""

    route: str
    handler: answers.Handler
    names: Mapping[str, str]


def match(method: str, path: str, without: Iterable[str] = ()) -> Match:
    """The route for a request; ``path`` is decoded, ``without`` are routes that do not exist.

    Raises:
        Refusal: 404 for an unknown path, 405 for one that knows other methods only.
    """
    known = False
    for (route_method, route), pattern in _PATTERNS.items():
        found = pattern.fullmatch(path)
        if found is None or route in without:
            continue
        if route_method == method:
            return Match(route, _TABLE[route_method, route], found.groupdict())
        known = True
    raise answers.refusal(405, "Method Not Allowed") if known else answers.not_found()


def _pattern(route: str) -> re.Pattern[str]:
    """An id is a UUID, everything else one segment of the path."""

    def group(placeholder: re.Match[str]) -> str:
        name = placeholder[1]
        return f"(?P<{name}>{_UUID if name == 'id' else '[^/]+'})"

    return re.compile(re.sub(r"\{(\w+)\}", group, route))


_PATTERNS = {key: _pattern(key[1]) for key in _TABLE}
