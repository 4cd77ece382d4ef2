"""A proposed state of a flow run, and what becomes of it."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from dispatcher.prefect_api.schemas import OrchestrationStatus
from dispatcher.testing.fake_prefect import records


@dataclass(frozen=True)
class Slots:
    """A deployment's concurrency limit; ``cancels_new`` tells what becomes of a run beyond it."""

    limit: int
    active: int
    cancels_new: bool = False


@dataclass(frozen=True)
class Transition:
    """A proposed state and all that a rule may look at; ``initial`` is the run's state."""

    run: records.FlowRun
    initial: records.State
    proposed: records.State
    now: datetime
    deployment_exists: bool = True
    slots: Slots | None = None


@dataclass(frozen=True)
class Verdict:
    """What becomes of a proposal; ``state`` is what is written, ``None`` for nothing."""

    status: OrchestrationStatus
    state: records.State | None = None
    reason: str | None = None
    delay_seconds: int | None = None
    takes_slot: bool = False
    frees_slot: bool = False
    policy: records.Policy | None = None
