"""Which records the fake Prefect API is asked for."""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime
from typing import Any, Literal
from uuid import UUID

from pydantic import Field

from dispatcher.testing.fake_prefect import records
from dispatcher.testing.fake_prefect.strictness import Lenient, Strict


class AnyOf(Strict):
    """A condition on one value."""

    any_: list[Any] | None = None
    not_any_: list[Any] | None = None

    def admits(self, value: Any) -> bool:
        """Whether the value is among those asked for and not among those ruled out."""
        wanted = self.any_ is None or str(value) in {str(item) for item in self.any_}
        return wanted and str(value) not in {str(item) for item in self.not_any_ or ()}


class StateFilter(Strict):
    """A condition on a run's state."""

    operator: Literal["and_", "or_"] = "and_"
    type: AnyOf | None = None
    name: AnyOf | None = None

    def admits(self, state: records.State) -> bool:
        """Whether the state fits: in both type and name, or with ``or_`` in one of them."""
        checks = [
            condition.admits(value)
            for condition, value in ((self.type, state.type.value), (self.name, state.name))
            if condition is not None
        ]
        return not checks or (any if self.operator == "or_" else all)(checks)


class TimeFilter(Strict):
    """A condition on a time."""

    before_: datetime | None = None
    after_: datetime | None = None

    def admits(self, time: datetime | None) -> bool:
        """Whether there is a time and it lies within, both ends included."""
        if time is None:
            return self.before_ is None and self.after_ is None
        return (self.before_ is None or time <= self.before_) and (
            self.after_ is None or time >= self.after_
        )


class FlowRunsPart(Strict):
    """Conditions on a run itself."""

    id: AnyOf | None = None
    name: AnyOf | None = None
    state: StateFilter | None = None
    flow_id: AnyOf | None = None
    deployment_id: AnyOf | None = None
    work_queue_name: AnyOf | None = None
    next_scheduled_start_time: TimeFilter | None = None
    parent_flow_run_id: AnyOf | None = None

    def admits(self, run: records.FlowRun) -> bool:
        """Whether the run fits every condition."""
        fields = (
            "id",
            "name",
            "flow_id",
            "deployment_id",
            "work_queue_name",
            "next_scheduled_start_time",
        )
        conditions = ((getattr(self, field), getattr(run, field)) for field in fields)
        return all(
            condition is None or condition.admits(value) for condition, value in conditions
        ) and (self.state is None or (run.state is not None and self.state.admits(run.state)))


class NamePart(Strict):
    """Conditions on a run's pool or queue."""

    id: AnyOf | None = None
    name: AnyOf | None = None

    def admits(self, identity: UUID | None, name: str | None) -> bool:
        """Whether both the id and the name fit."""
        return (self.id is None or self.id.admits(identity)) and (
            self.name is None or self.name.admits(name)
        )


class DeploymentsPart(Strict):
    """Conditions on a run's deployment, which a run without one does not fit."""

    id: AnyOf | None = None

    def admits(self, identity: UUID | None) -> bool:
        """Whether there is a deployment and it fits."""
        return self.id is None or (identity is not None and self.id.admits(identity))


class TaskRunsPart(Strict):
    """Conditions on one of a run's task runs."""

    id: AnyOf | None = None

    def admits(self, identities: Collection[UUID]) -> bool:
        """Whether one of them fits."""
        return self.id is None or any(map(self.id.admits, identities))


class FlowRunsFilter(Lenient):
    """Which runs to show, and how."""

    flow_runs: FlowRunsPart = Field(default_factory=FlowRunsPart)
    work_pools: NamePart = Field(default_factory=NamePart)
    work_pool_queues: NamePart = Field(default_factory=NamePart)
    deployments: DeploymentsPart = Field(default_factory=DeploymentsPart)
    task_runs: TaskRunsPart = Field(default_factory=TaskRunsPart)
    limit: int | None = None
    offset: int = Field(default=0, ge=0)
    sort: str = "ID_DESC"

    def admits(self, run: records.FlowRun) -> bool:
        """Whether the run, its pool and its queue fit."""
        return (
            self.flow_runs.admits(run)
            and self.work_pools.admits(run.work_pool_id, run.work_pool_name)
            and self.work_pool_queues.admits(run.work_queue_id, run.work_queue_name)
            and self.deployments.admits(run.deployment_id)
        )

    def admits_family(self, parent: UUID | None, tasks: Collection[UUID]) -> bool:
        """Whether the run that started it, and its tasks, fit."""
        wanted = self.flow_runs.parent_flow_run_id
        return (wanted is None or wanted.admits(parent)) and self.task_runs.admits(tasks)


class Page(Lenient):
    """Which part of a list to show."""

    limit: int | None = None
    offset: int = Field(default=0, ge=0)


class LogsPart(Strict):
    """Conditions on lines of a log."""

    flow_run_id: AnyOf = Field(default_factory=AnyOf)


class LogsFilter(Page):
    """Which lines of a log to show."""

    logs: LogsPart = Field(default_factory=LogsPart)
    sort: str = "TIMESTAMP_ASC"


class EventNames(Strict):
    """Conditions on an event's name."""

    name: list[str] | None = None


class ResourceIds(Strict):
    """Conditions on an event's resources."""

    id: list[str] | None = None


class EventsPart(Lenient):
    """Conditions on events."""

    event: EventNames = Field(default_factory=EventNames)
    any_resource: ResourceIds = Field(default_factory=ResourceIds)
    order: Literal["ASC", "DESC"] = "DESC"


class EventsFilter(Lenient):
    """Which events to show."""

    filter: EventsPart = Field(default_factory=EventsPart)
    limit: int = Field(default=50, ge=0, le=50)


class Poll(Lenient):
    """Which due runs to show."""

    work_queue_names: list[str] | None = None
    scheduled_before: datetime | None = None
    scheduled_after: datetime | None = None
    limit: int | None = None
