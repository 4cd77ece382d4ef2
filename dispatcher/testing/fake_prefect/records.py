"""What the fake Prefect API keeps, in the shapes in which a Prefect server answers."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field

from dispatcher.prefect_api.schemas import TERMINAL_STATES, StateType


class Record(BaseModel):
    """Something with an id; ``created`` and ``updated`` are the fake's own time."""

    id: UUID = Field(default_factory=uuid4)
    created: datetime
    updated: datetime

    def to_json(self) -> dict[str, Any]:
        """The record as the server would answer it."""
        return self.model_dump(mode="json")


class StateDetails(BaseModel):
    """The details of a state that orchestration looks at; others are kept as they came."""

    model_config = ConfigDict(extra="allow")

    flow_run_id: UUID | None = None
    scheduled_time: datetime | None = None
    pause_timeout: datetime | None = None
    pause_reschedule: bool = False
    pause_key: str | None = None
    transition_id: UUID | None = None
    deployment_concurrency_lease_id: UUID | None = None


class State(BaseModel):
    """A state of a flow run; never changed once it is written."""

    id: UUID = Field(default_factory=uuid4)
    type: StateType
    name: str
    timestamp: datetime
    message: str | None = None
    data: Any = None
    state_details: StateDetails = Field(default_factory=StateDetails)

    @property
    def is_final(self) -> bool:
        """Whether nothing more happens to the run by itself."""
        return self.type in TERMINAL_STATES

    @property
    def has_stored_result(self) -> bool:
        """Whether the state carries a result that was stored somewhere."""
        return isinstance(self.data, dict) and self.data.get("type") != "unpersisted"

    def with_details(self, **details: Any) -> State:
        """The same state with some of its details replaced."""
        return self.model_copy(
            update={"state_details": self.state_details.model_copy(update=details)}
        )


class Policy(BaseModel):
    """A run's empirical policy: how often it retries, and how its last retry came about."""

    model_config = ConfigDict(extra="allow")

    retries: int | None = None
    retry_delay: int | None = None
    pause_keys: list[str] = Field(default_factory=list)
    resuming: bool = False
    retry_type: str | None = None


class Flow(Record):
    """A flow."""

    name: str
    tags: list[str] = Field(default_factory=list)
    labels: dict[str, Any] = Field(default_factory=dict)


class WorkPool(Record):
    """A work pool."""

    name: str
    description: str | None = None
    type: str = "prefect-agent"
    base_job_template: dict[str, Any] = Field(default_factory=dict)
    is_paused: bool = False
    concurrency_limit: int | None = None
    status: str = "NOT_READY"
    default_queue_id: UUID | None = None
    storage_configuration: dict[str, Any] = Field(default_factory=dict)
    active_slots: int | None = None


class WorkQueue(Record):
    """A queue of a work pool."""

    name: str
    description: str = ""
    is_paused: bool = False
    concurrency_limit: int | None = None
    priority: int = 1
    work_pool_id: UUID
    work_pool_name: str
    last_polled: datetime | None = None
    status: str = "NOT_READY"
    active_slots: int | None = None


class Worker(Record):
    """A worker of a pool, as its last heartbeat left it."""

    name: str
    work_pool_id: UUID
    last_heartbeat_time: datetime
    heartbeat_interval_seconds: int | None = None
    status: str = "ONLINE"


class ConcurrencyLimit(Record):
    """A deployment's concurrency limit."""

    active: bool = True
    name: str
    limit: int
    active_slots: int = 0
    slot_decay_per_second: float = 0.0


class Deployment(Record):
    """A deployment."""

    name: str
    flow_id: UUID
    version: str | None = None
    description: str | None = None
    paused: bool = False
    concurrency_limit: int | None = None
    global_concurrency_limit: ConcurrencyLimit | None = None
    concurrency_options: dict[str, Any] | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)
    parameters: dict[str, Any] = Field(default_factory=dict)
    tags: list[str] = Field(default_factory=list)
    labels: dict[str, Any] = Field(default_factory=dict)
    work_queue_name: str | None = None
    work_queue_id: UUID | None = None
    work_pool_name: str | None = None
    path: str | None = None
    pull_steps: list[dict[str, Any]] | None = Field(default_factory=list)
    entrypoint: str | None = None
    storage_document_id: UUID | None = None
    status: str = "NOT_READY"
    enforce_parameter_schema: bool = True


class TaskRun(Record):
    """A task run of a flow run."""

    flow_run_id: UUID
    task_key: str
    dynamic_key: str


class FlowRun(Record):
    """A flow run; ``states`` is its history, oldest first."""

    name: str
    flow_id: UUID
    deployment_id: UUID | None = None
    parent_task_run_id: UUID | None = None
    work_queue_id: UUID | None = None
    work_queue_name: str | None = None
    work_pool_id: UUID | None = None
    work_pool_name: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    idempotency_key: str | None = None
    context: dict[str, Any] = Field(default_factory=dict)
    empirical_policy: Policy = Field(default_factory=Policy)
    tags: list[str] = Field(default_factory=list)
    labels: dict[str, Any] = Field(default_factory=dict)
    job_variables: dict[str, Any] | None = Field(default_factory=dict)
    run_count: int = 0
    expected_start_time: datetime | None = None
    next_scheduled_start_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    infrastructure_pid: str | None = None
    states: list[State] = Field(default_factory=list, exclude=True)

    @property
    def state(self) -> State | None:
        """The run's state; none only while it is being created."""
        return self.states[-1] if self.states else None

    def to_json(self) -> dict[str, Any]:
        """The run with its state."""
        body = super().to_json()
        state = self.state
        if state is not None:
            body |= {
                "state": state.model_dump(mode="json"),
                "state_id": str(state.id),
                "state_type": state.type.value,
                "state_name": state.name,
            }
        return body


class Variable(Record):
    """A variable."""

    name: str
    value: Any = None
    tags: list[str] = Field(default_factory=list)


class BlockType(Record):
    """A block type."""

    name: str
    slug: str
    logo_url: str | None = None
    documentation_url: str | None = None
    description: str | None = None
    code_example: str | None = None
    is_protected: bool = False


class BlockSchema(Record):
    """A block schema; ``fields["secret_fields"]`` are dotted paths into a document's data."""

    checksum: str
    fields: dict[str, Any] = Field(default_factory=dict)
    block_type_id: UUID
    block_type: BlockType
    capabilities: list[str] = Field(default_factory=list)
    version: str = "non-versioned"


class BlockDocument(Record):
    """A block document, its secrets in clear."""

    name: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    block_schema_id: UUID
    block_schema: BlockSchema
    block_type_id: UUID
    block_type_name: str
    block_type: BlockType
    block_document_references: dict[str, Any] = Field(default_factory=dict)
    is_anonymous: bool = False


class Log(Record):
    """A line of a run's log."""

    name: str
    level: int
    message: str
    timestamp: datetime
    flow_run_id: UUID | None = None
    task_run_id: UUID | None = None


class Event(BaseModel):
    """An event; ``received`` is the fake's own time."""

    id: UUID
    occurred: datetime
    event: str
    resource: dict[str, str]
    related: list[dict[str, str]] = Field(default_factory=list)
    payload: dict[str, Any] = Field(default_factory=dict)
    follows: UUID | None = None
    received: datetime

    def to_json(self) -> dict[str, Any]:
        """The event as the server would answer it."""
        return self.model_dump(mode="json")
