"""What the Prefect REST API sends and takes, as typed values.

Only the fields the dispatcher reads are named; unknown ones are ignored, so that a newer server
is no obstacle. Times are aware datetimes; durations are seconds.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID, uuid4

from pydantic import BaseModel, ConfigDict, Field, model_validator


class StateType(StrEnum):
    """Prefect's state types (names such as ``Late`` or ``AwaitingRetry`` come on top)."""

    SCHEDULED = "SCHEDULED"
    PENDING = "PENDING"
    RUNNING = "RUNNING"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    CRASHED = "CRASHED"
    PAUSED = "PAUSED"
    CANCELLING = "CANCELLING"


TERMINAL_STATES = frozenset(
    {StateType.COMPLETED, StateType.FAILED, StateType.CANCELLED, StateType.CRASHED}
)


class OrchestrationStatus(StrEnum):
    """The server's verdict on a proposed state; the HTTP code says nothing about it."""

    ACCEPT = "ACCEPT"
    REJECT = "REJECT"
    ABORT = "ABORT"
    WAIT = "WAIT"


class _Schema(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class StateDetails(_Schema):
    """The part of a state's details that decides who owns a claim and when a run is due.

    ``pause_reschedule`` marks a run without a process: it is suspended until it is resumed.
    """

    transition_id: UUID | None = None
    scheduled_time: datetime | None = None
    deployment_concurrency_lease_id: UUID | None = None
    pause_reschedule: bool = False


class State(_Schema):
    """A flow run's state as the server reports it."""

    type: StateType
    name: str = ""
    id: UUID | None = None
    timestamp: datetime | None = None
    message: str | None = None
    state_details: StateDetails = Field(default_factory=StateDetails)

    @property
    def is_terminal(self) -> bool:
        """Whether nothing more will happen to the run by itself."""
        return self.type in TERMINAL_STATES

    @property
    def is_running(self) -> bool:
        """Whether the flow has begun and has not ended."""
        return self.type is StateType.RUNNING

    @property
    def is_waiting_in_process(self) -> bool:
        """Whether the run is paused and its process waits; a suspended one has none."""
        return self.type is StateType.PAUSED and not self.state_details.pause_reschedule

    @property
    def is_cancelling(self) -> bool:
        """Whether someone asked to cancel (2.x clients write a CANCELLED state so named)."""
        return self.type is StateType.CANCELLING or (
            self.type is StateType.CANCELLED and self.name == "Cancelling"
        )


class StateProposal(_Schema):
    """A state to propose. The server sets id and time and refuses them from a client."""

    type: StateType
    name: str | None = None
    message: str | None = None
    transition_id: UUID | None = None
    scheduled_time: datetime | None = None

    def to_body(self) -> dict[str, Any]:
        """The JSON body of this state, with nothing in it that the server would refuse."""
        details = {
            "transition_id": str(self.transition_id or uuid4()),
            "scheduled_time": self.scheduled_time.isoformat() if self.scheduled_time else None,
        }
        body: dict[str, Any] = {
            "type": self.type.value,
            "state_details": {key: value for key, value in details.items() if value is not None},
        }
        if self.name is not None:
            body["name"] = self.name
        if self.message is not None:
            body["message"] = self.message
        return body


class OrchestrationResult(_Schema):
    """The server's answer to a proposed state.

    ``state`` is the state the run has now, whatever the verdict; it is ``None`` only where a
    bulk proposal failed for that run. ``delay_seconds`` is set for WAIT.
    """

    status: OrchestrationStatus
    state: State | None = None
    reason: str | None = None
    delay_seconds: float | None = None
    flow_run_id: UUID | None = None

    @classmethod
    def from_body(cls, body: Mapping[str, Any]) -> OrchestrationResult:
        """Read the body of ``set_state`` or one row of ``bulk_set_state``."""
        details = body.get("details") or {}
        return cls.model_validate(
            {
                **body,
                "reason": details.get("reason"),
                "delay_seconds": details.get("delay_seconds"),
            }
        )


class FlowRun(_Schema):
    """A flow run. In poll results ``state`` is absent and ``state_type`` / ``state_name`` tell."""

    id: UUID
    name: str = ""
    flow_id: UUID
    deployment_id: UUID | None = None
    parent_task_run_id: UUID | None = None
    work_queue_id: UUID | None = None
    work_queue_name: str | None = None
    work_pool_name: str | None = None
    state: State | None = None
    state_id: UUID | None = None
    state_type: StateType | None = None
    state_name: str | None = None
    run_count: int = 0
    expected_start_time: datetime | None = None
    next_scheduled_start_time: datetime | None = None
    start_time: datetime | None = None
    end_time: datetime | None = None
    infrastructure_pid: str | None = None
    parameters: dict[str, Any] = Field(default_factory=dict)
    tags: tuple[str, ...] = ()
    labels: dict[str, Any] = Field(default_factory=dict)
    job_variables: dict[str, Any] | None = None
    empirical_policy: dict[str, Any] = Field(default_factory=dict)

    @property
    def retry_type(self) -> str | None:
        """``in_process`` while the run's own engine waits to retry; polls hide such runs."""
        value = self.empirical_policy.get("retry_type")
        return value if isinstance(value, str) else None


class ScheduledFlowRun(_Schema):
    """One row of a work pool poll."""

    work_pool_id: UUID
    work_queue_id: UUID
    flow_run: FlowRun


class WorkPool(_Schema):
    """A work pool."""

    id: UUID
    name: str
    type: str
    base_job_template: dict[str, Any] = Field(default_factory=dict)
    is_paused: bool = False
    concurrency_limit: int | None = None
    status: str | None = None
    default_queue_id: UUID | None = None


class WorkQueue(_Schema):
    """A work queue of a pool; priority 1 is the highest."""

    id: UUID
    name: str
    priority: int = 1
    is_paused: bool = False
    concurrency_limit: int | None = None
    last_polled: datetime | None = None
    status: str | None = None


class Worker(_Schema):
    """A worker of a pool, as its heartbeats left it; ``status`` is ONLINE or OFFLINE."""

    name: str
    status: str | None = None
    last_heartbeat_time: datetime | None = None
    heartbeat_interval_seconds: int | None = None


class Deployment(_Schema):
    """A deployment, as far as launching its runs needs it."""

    id: UUID
    name: str
    flow_id: UUID
    updated: datetime | None = None
    entrypoint: str | None = None
    path: str | None = None
    pull_steps: list[dict[str, Any]] | None = None
    storage_document_id: UUID | None = None
    job_variables: dict[str, Any] = Field(default_factory=dict)
    tags: tuple[str, ...] = ()
    work_pool_name: str | None = None
    work_queue_name: str | None = None


class Flow(_Schema):
    """A flow."""

    id: UUID
    name: str
    tags: tuple[str, ...] = ()
    labels: dict[str, Any] = Field(default_factory=dict)


class BlockDocument(_Schema):
    """A block document, its secrets in clear; never log one."""

    id: UUID
    name: str | None = None
    data: dict[str, Any] = Field(default_factory=dict, repr=False)
    block_type_slug: str | None = None

    @model_validator(mode="before")
    @classmethod
    def _slug_of_block_type(cls, body: Any) -> Any:
        if isinstance(body, Mapping) and isinstance(body.get("block_type"), Mapping):
            return {"block_type_slug": body["block_type"].get("slug"), **body}
        return body


class Variable(_Schema):
    """A variable; ``value`` is any JSON, ``None`` for one that is set to null."""

    name: str
    value: Any = None


class LogEntry(_Schema):
    """A line for a run's page; ``level`` counts as Python's does (20 is INFO)."""

    name: str
    level: int
    message: str
    timestamp: datetime
    flow_run_id: UUID | None = None


class Event(_Schema):
    """A Prefect event. Sent again under the same ``id`` it is still one event."""

    id: UUID = Field(default_factory=uuid4)
    occurred: datetime
    event: str
    resource: dict[str, str]
    related: list[dict[str, str]] = Field(default_factory=list)
    payload: dict[str, Any] = Field(default_factory=dict)
    follows: UUID | None = None


@dataclass(frozen=True)
class FlowRunFilter:
    """Which flow runs to read; all conditions must hold.

    ``states_any`` makes one of ``state_types`` and ``state_names`` enough, instead of both.
    ``not_deployment_ids`` leaves out runs without a deployment too, as the server does.
    ``parent_ids`` asks for the child runs of these, ``task_run_ids`` for the runs of these tasks.

    Raises:
        ValueError: ``ids`` is given but empty, which is a slip of the caller's: the server would
            find nothing, and leaving the condition out would find everything.
    """

    ids: Collection[UUID] | None = None
    not_ids: Collection[UUID] = ()
    state_types: Collection[StateType] = ()
    state_names: Collection[str] = ()
    states_any: bool = False
    work_pool_names: Collection[str] = ()
    work_queue_names: Collection[str] = ()
    work_queue_ids: Collection[UUID] = ()
    deployment_ids: Collection[UUID] = ()
    not_deployment_ids: Collection[UUID] = ()
    due_before: datetime | None = None
    parent_ids: Collection[UUID] = ()
    task_run_ids: Collection[UUID] = ()

    def __post_init__(self) -> None:
        if self.ids is not None and not self.ids:
            raise ValueError("an empty list of flow run ids selects nothing; do not ask at all")

    def to_body(self) -> dict[str, Any]:
        """The JSON body of the filter, without conditions that are not set."""
        due = {"before_": self.due_before.isoformat()} if self.due_before else {}
        flow_runs = {
            "id": self._ids(),
            "state": self._state(),
            "next_scheduled_start_time": due,
            **_any_of("parent_flow_run_id", self.parent_ids),
        }
        body = {
            "flow_runs": {key: value for key, value in flow_runs.items() if value},
            "work_pools": _any_of("name", self.work_pool_names),
            "work_pool_queues": {
                **_any_of("name", self.work_queue_names),
                **_any_of("id", self.work_queue_ids),
            },
            "task_runs": _any_of("id", self.task_run_ids),
            "deployments": {
                **_any_of("id", self.deployment_ids),
                **_any_of("id", self.not_deployment_ids, "not_any_"),
            },
        }
        return {key: value for key, value in body.items() if value}

    def _ids(self) -> dict[str, Any]:
        lists = {"any_": self.ids or (), "not_any_": self.not_ids}
        return {key: [str(item) for item in ids] for key, ids in lists.items() if ids}

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {}
        if self.state_types:
            state["type"] = {"any_": [item.value for item in self.state_types]}
        if self.state_names:
            state["name"] = {"any_": list(self.state_names)}
        if self.states_any and len(state) > 1:
            state["operator"] = "or_"
        return state


def _any_of(field: str, values: Collection[object], test: str = "any_") -> dict[str, Any]:
    return {field: {test: [str(value) for value in values]}} if values else {}
