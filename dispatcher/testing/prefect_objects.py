"""Makes flows, deployments, runs and blocks on a Prefect server, real or fake, for tests."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

from dispatcher.prefect_api import client, schemas
from dispatcher.prefect_api.schemas import StateType


class PrefectObjects:
    """Creates what a dispatcher only reads; every name is new unless it is given."""

    def __init__(self, prefect: client.PrefectClient) -> None:
        self.client = prefect
        self._request = prefect.transport.request

    def pool(self, name: str | None = None, **values: Any) -> schemas.WorkPool:
        """A new work pool, of type ``process`` unless ``values`` say otherwise."""
        body = {"name": name or new_name("pool"), "type": "process", **values}
        return schemas.WorkPool.model_validate(self._request("POST", "/work_pools/", json=body))

    def change_pool(self, pool: str, **values: Any) -> None:
        """Change a pool: ``is_paused``, ``concurrency_limit`` or another field."""
        self._request("PATCH", "/work_pools/{pool}", names={"pool": pool}, json=values)

    def delete_pool(self, pool: str) -> None:
        """Delete a pool with its queues."""
        self._request("DELETE", "/work_pools/{pool}", names={"pool": pool})

    def queue(self, pool: str, name: str | None = None, **values: Any) -> schemas.WorkQueue:
        """A new queue of a pool."""
        body = {"name": name or new_name("queue"), **values}
        row = self._request("POST", "/work_pools/{pool}/queues", names={"pool": pool}, json=body)
        return schemas.WorkQueue.model_validate(row)

    def change_queue(self, pool: str, queue: str, **values: Any) -> None:
        """Change a queue: ``is_paused``, ``concurrency_limit``, ``priority``."""
        self._request(
            "PATCH",
            "/work_pools/{pool}/queues/{queue}",
            names={"pool": pool, "queue": queue},
            json=values,
        )

    def flow(self, name: str | None = None) -> schemas.Flow:
        """A flow; an existing name gives the existing flow."""
        row = self._request("POST", "/flows/", json={"name": name or new_name("flow")})
        return schemas.Flow.model_validate(row)

    def deployment(self, pool: str, flow: str | None = None, **values: Any) -> schemas.Deployment:
        """A new deployment to a pool, of a new flow unless ``flow`` names one."""
        body = {
            "name": new_name("deployment"),
            "flow_id": str(self.flow(flow).id),
            "work_pool_name": pool,
            "enforce_parameter_schema": False,
            **values,
        }
        row = self._request("POST", "/deployments/", json=body)
        return schemas.Deployment.model_validate(row)

    def delete_deployment(self, deployment_id: UUID) -> None:
        """Delete a deployment, and with it its Scheduled runs."""
        self._request("DELETE", "/deployments/{id}", names={"id": str(deployment_id)})

    def run(self, deployment: schemas.Deployment, **values: Any) -> schemas.FlowRun:
        """A new run of a deployment, due now."""
        row = self._request(
            "POST",
            "/deployments/{id}/create_flow_run",
            names={"id": str(deployment.id)},
            json=values,
        )
        return schemas.FlowRun.model_validate(row)

    def child_run(
        self, parent: schemas.FlowRun, deployment: schemas.Deployment, **values: Any
    ) -> schemas.FlowRun:
        """A run that another one has started, as ``run_deployment`` does."""
        task = {"flow_run_id": str(parent.id), "task_key": "child", "dynamic_key": uuid4().hex}
        row = self._request("POST", "/task_runs/", json=task)
        return self.run(deployment, parent_task_run_id=row["id"], **values)

    def run_without_deployment(self, **values: Any) -> schemas.FlowRun:
        """A new run of a new flow; ``work_pool_name`` puts it into a pool."""
        body = {"flow_id": str(self.flow().id), "state": {"type": "SCHEDULED"}, **values}
        return schemas.FlowRun.model_validate(self._request("POST", "/flow_runs/", json=body))

    def delete_run(self, flow_run_id: UUID) -> None:
        """Delete a run."""
        self._request("DELETE", "/flow_runs/{id}", names={"id": str(flow_run_id)})

    def force(
        self, flow_run_id: UUID, state_type: StateType, name: str | None = None, **details: Any
    ) -> schemas.OrchestrationResult:
        """Put a run into a state past the rules; ``details`` are the state's."""
        return self.propose(flow_run_id, state_type, name, force=True, **details)

    def propose(
        self,
        flow_run_id: UUID,
        state_type: StateType,
        name: str | None = None,
        *,
        force: bool = False,
        **details: Any,
    ) -> schemas.OrchestrationResult:
        """Propose a state with any details, also such as a dispatcher never sets."""
        state = {"type": state_type.value, "name": name, "state_details": details}
        row = self._request(
            "POST",
            "/flow_runs/{id}/set_state",
            names={"id": str(flow_run_id)},
            json={"state": state, "force": force},
        )
        return schemas.OrchestrationResult.from_body(row)

    def states(self, flow_run_id: UUID) -> list[schemas.State]:
        """A run's history, oldest first."""
        rows = self._request("GET", "/flow_run_states/", params={"flow_run_id": str(flow_run_id)})
        return [schemas.State.model_validate(row) for row in rows]

    def variable(self, name: str, value: Any) -> None:
        """Create a variable."""
        self._request("POST", "/variables/", json={"name": name, "value": value})

    def block(
        self, data: Mapping[str, Any], *, secret_fields: tuple[str, ...] = ()
    ) -> schemas.BlockDocument:
        """A new block document of a new block type."""
        slug = new_name("block-type")
        block_type = self._request("POST", "/block_types/", json={"name": slug, "slug": slug})
        fields = {
            "type": "object",
            "title": slug,
            "properties": {key: {"title": key} for key in data},
            "secret_fields": list(secret_fields),
            "block_type_slug": slug,
            "block_schema_references": {},
        }
        schema = self._request(
            "POST",
            "/block_schemas/",
            json={"block_type_id": block_type["id"], "fields": fields},
        )
        body = {
            "name": new_name("block"),
            "data": dict(data),
            "block_schema_id": schema["id"],
            "block_type_id": block_type["id"],
        }
        return schemas.BlockDocument.model_validate(
            self._request("POST", "/block_documents/", json=body)
        )

    def used_slots(self, deployment_id: UUID) -> int:
        """How many slots of the deployment's concurrency limit are taken."""
        row = self._request(
            "GET", "/v2/concurrency_limits/deployment:{id}", names={"id": str(deployment_id)}
        )
        return int(row["active_slots"])


def new_name(kind: str) -> str:
    """A name that nothing has yet."""
    return f"{kind}-{uuid4().hex[:8]}"
