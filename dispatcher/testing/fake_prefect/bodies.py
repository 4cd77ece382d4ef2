"""What the fake Prefect API takes: like the server it refuses what a body should not hold.

A key that a Prefect server knows and the fake does not is refused too, rather than passed over.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import AfterValidator, Field, StringConstraints

from dispatcher.prefect_api.schemas import StateType
from dispatcher.testing.fake_prefect import filters, records
from dispatcher.testing.fake_prefect.strictness import Lenient, Strict

BULK_LIMIT = 50

_PLACEHOLDER = re.compile(r"{{\s*([\w.-]+)\s*}}")

Name = Annotated[str, StringConstraints(pattern=r"^[^/%&><]+$")]


def _checked_template(template: dict[str, Any]) -> dict[str, Any]:
    """A base job template in which every placeholder is a declared variable; empty is allowed."""
    if not template:
        return template
    if not {"job_configuration", "variables"} <= template.keys():
        raise ValueError(
            "The `base_job_template` must contain both a `job_configuration` key and a "
            "`variables` key."
        )
    used = {
        name
        for name in _PLACEHOLDER.findall(str(template["job_configuration"]))
        if not name.startswith("prefect.")
    }
    missing = used - set(template["variables"].get("properties", {}))
    if missing:
        raise ValueError(
            "The variables specified in the job configuration template must be present as "
            "properties in the variables schema. Your job configuration uses the following "
            f"undeclared variable(s): {' ,'.join(sorted(missing))}."
        )
    return template


def _checked_variable_name(name: str) -> str:
    if not re.fullmatch(r"[a-z0-9_-]+", name):
        raise ValueError(
            "Variable name must only contain lowercase letters, numbers, and dashes or underscores."
        )
    return name


Template = Annotated[dict[str, Any], AfterValidator(_checked_template)]
VariableName = Annotated[str, AfterValidator(_checked_variable_name)]


class WorkPoolCreate(Strict):
    """A work pool to create."""

    name: Name
    type: str = "prefect-agent"
    description: str | None = None
    base_job_template: Template = Field(default_factory=dict)
    is_paused: bool = False
    concurrency_limit: int | None = Field(default=None, ge=0)


class WorkPoolUpdate(Strict):
    """What to change of a work pool."""

    description: str | None = None
    is_paused: bool | None = None
    base_job_template: Template | None = None
    concurrency_limit: int | None = Field(default=None, ge=0)


class WorkQueueCreate(Strict):
    """A work queue to create; last in line without a priority."""

    name: Name
    description: str | None = ""
    is_paused: bool = False
    concurrency_limit: int | None = Field(default=None, ge=0)
    priority: int | None = Field(default=None, ge=1)


class WorkQueueUpdate(Strict):
    """What to change of a work queue."""

    description: str | None = None
    is_paused: bool | None = None
    concurrency_limit: int | None = Field(default=None, ge=0)
    priority: int | None = Field(default=None, ge=1)


class Heartbeat(Lenient):
    """A worker's sign of life."""

    name: str
    heartbeat_interval_seconds: int | None = None


class FlowCreate(Strict):
    """A flow to create."""

    name: Name
    tags: list[str] = Field(default_factory=list)
    labels: dict[str, Any] = Field(default_factory=dict)


class DeploymentCreate(Strict):
    """A deployment to create."""

    name: Name
    flow_id: UUID
    version: str | None = None
    description: str | None = None
    paused: bool = False
    concurrency_limit: int | None = None
    concurrency_options: dict[str, Any] | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    tags: list[str] = Field(default_factory=list)
    work_pool_name: str | None = None
    work_queue_name: str | None = None
    path: str | None = None
    pull_steps: list[dict[str, Any]] | None = Field(default_factory=list)
    entrypoint: str | None = None
    storage_document_id: UUID | None = None
    enforce_parameter_schema: bool = True


class ConcurrencyLimitUpdate(Strict):
    """What to change of a concurrency limit."""

    limit: int | None = Field(default=None, ge=0)
    active_slots: int | None = Field(default=None, ge=0)


class StateCreate(Strict):
    """A proposed state; id and time are the server's."""

    type: StateType
    name: str | None = None
    message: str | None = None
    data: Any = None
    state_details: records.StateDetails = Field(default_factory=records.StateDetails)

    def to_state(self, now: datetime) -> records.State:
        """The state itself, with the name and time that it has by default."""
        state = records.State(
            type=self.type,
            name=self.name or self.type.value.capitalize(),
            timestamp=now,
            message=self.message,
            data=self.data,
            state_details=self.state_details,
        )
        if self.type is StateType.SCHEDULED and not self.state_details.scheduled_time:
            return state.with_details(scheduled_time=now)
        return state


class DeploymentFlowRunCreate(Strict):
    """A run of a deployment to create."""

    state: StateCreate | None = None
    name: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    idempotency_key: str | None = None
    context: dict[str, Any] = Field(default_factory=dict)
    empirical_policy: records.Policy = Field(default_factory=records.Policy)
    tags: list[str] = Field(default_factory=list)
    labels: dict[str, Any] = Field(default_factory=dict)
    job_variables: dict[str, Any] | None = Field(default_factory=dict)
    work_queue_name: str | None = None
    enforce_parameter_schema: bool | None = None
    parent_task_run_id: UUID | None = None


class TaskRunCreate(Strict):
    """A task run to create."""

    flow_run_id: UUID
    task_key: str
    dynamic_key: str


class FlowRunCreate(DeploymentFlowRunCreate):
    """A run of a flow to create."""

    flow_id: UUID
    deployment_id: UUID | None = None
    infrastructure_pid: str | None = None
    work_pool_name: str | None = None


class FlowRunUpdate(Strict):
    """What to change of a run."""

    name: str | None = None
    flow_version: str | None = None
    parameters: dict[str, Any] | None = None
    empirical_policy: records.Policy | None = None
    tags: list[str] | None = None
    infrastructure_pid: str | None = None
    job_variables: dict[str, Any] | None = None


class SetState(Lenient):
    """A state to put to the rules."""

    state: StateCreate
    force: bool = False


class BulkSetState(Lenient):
    """A state to propose for all runs of a filter."""

    flow_runs: filters.FlowRunsPart = Field(default_factory=filters.FlowRunsPart)
    state: StateCreate
    force: bool = False
    limit: int = Field(default=BULK_LIMIT, ge=1, le=BULK_LIMIT)


class VariableCreate(Strict):
    """A variable to create."""

    name: VariableName
    value: Any = None
    tags: list[str] = Field(default_factory=list)


class VariableUpdate(Strict):
    """What to change of a variable."""

    value: Any = None
    tags: list[str] | None = None


class BlockTypeCreate(Strict):
    """A block type to create."""

    name: Name
    slug: str
    logo_url: str | None = None
    documentation_url: str | None = None
    description: str | None = None
    code_example: str | None = None


class BlockSchemaCreate(Strict):
    """A block schema to create."""

    fields: dict[str, Any] = Field(default_factory=dict)
    block_type_id: UUID
    capabilities: list[str] = Field(default_factory=list)
    version: str = "non-versioned"


class BlockDocumentCreate(Strict):
    """A block document to create."""

    name: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    block_schema_id: UUID
    block_type_id: UUID
    is_anonymous: bool = False


class LogCreate(Strict):
    """A line of a log."""

    name: str
    level: int
    message: str
    timestamp: datetime
    flow_run_id: UUID | None = None
    task_run_id: UUID | None = None


class EventCreate(Lenient):
    """An event to emit."""

    id: UUID
    occurred: datetime
    event: str
    resource: dict[str, str]
    related: list[dict[str, str]] = Field(default_factory=list)
    payload: dict[str, Any] = Field(default_factory=dict)
    follows: UUID | None = None
