"""Pools, deployments and flows as Prefect has them, remembered for seconds.

A fleet starts many runs of few deployments; reading these anew for each would be half of all API
requests. A change shows within the lifetimes below.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar
from uuid import UUID

from dispatcher.prefect_api import client, schemas

POOL_LIFETIME = 15.0  # seconds
QUEUES_LIFETIME = 30.0  # seconds
DEPLOYMENT_LIFETIME = 10.0  # seconds
FLOW_LIFETIME = 300.0  # seconds; a flow has nothing but a name and tags
MAX_ENTRIES = 1000

K = TypeVar("K")
V = TypeVar("V")


class _Memory(Generic[K, V]):
    """The last answers of one read, each for a lifetime; safe to share between threads."""

    def __init__(
        self, read: Callable[[K], V], lifetime: float, monotonic: Callable[[], float]
    ) -> None:
        self._read = read
        self._lifetime = lifetime
        self._monotonic = monotonic
        self._entries: dict[K, tuple[float, V]] = {}

    def get(self, key: K) -> V:
        # No lock, since a fork may happen while another thread holds it. Each step is atomic.
        entry = self._entries.get(key)
        now = self._monotonic()
        if entry is not None and now - entry[0] < self._lifetime:
            return entry[1]
        value = self._read(key)
        if len(self._entries) >= MAX_ENTRIES:
            self._entries.clear()
        self._entries[key] = (now, value)
        return value


class Catalog:
    """Reads pools, deployments and flows through a short memory.

    Every method raises :class:`dispatcher.errors.ObjectNotFound` for what does not exist, and
    other :class:`dispatcher.errors.ApiError` as the client does; errors are never remembered.
    """

    def __init__(
        self, api: client.PrefectClient, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._pools: _Memory[str, schemas.WorkPool] = _Memory(
            api.read_work_pool, POOL_LIFETIME, monotonic
        )
        self._queues: _Memory[str, list[schemas.WorkQueue]] = _Memory(
            api.read_work_queues, QUEUES_LIFETIME, monotonic
        )
        self._deployments: _Memory[UUID, schemas.Deployment] = _Memory(
            api.read_deployment, DEPLOYMENT_LIFETIME, monotonic
        )
        self._flows: _Memory[UUID, schemas.Flow] = _Memory(api.read_flow, FLOW_LIFETIME, monotonic)
        # What hardly ever changes of a deployment, and is asked for at each of its runs.
        self._basics: _Memory[UUID, schemas.Deployment] = _Memory(
            api.read_deployment, FLOW_LIFETIME, monotonic
        )

    def pool(self, name: str) -> schemas.WorkPool:
        """A work pool, at most ``POOL_LIFETIME`` seconds old."""
        return self._pools.get(name)

    def queues(self, pool: str) -> list[schemas.WorkQueue]:
        """A work pool's queues, at most ``QUEUES_LIFETIME`` seconds old."""
        return self._queues.get(pool)

    def deployment(self, deployment_id: UUID) -> schemas.Deployment:
        """A deployment, at most ``DEPLOYMENT_LIFETIME`` seconds old."""
        return self._deployments.get(deployment_id)

    def flow(self, flow_id: UUID) -> schemas.Flow:
        """A flow, at most ``FLOW_LIFETIME`` seconds old."""
        return self._flows.get(flow_id)

    def title(self, run: schemas.FlowRun) -> str:
        """``flow/deployment`` as Prefect writes it, the flow's name for a run without a deployment.

        At most ``FLOW_LIFETIME`` seconds old.
        """
        flow = self._flows.get(run.flow_id).name
        if run.deployment_id is None:
            return flow
        return f"{flow}/{self._basics.get(run.deployment_id).name}"

    def job_variable(self, deployment_id: UUID, name: str) -> Any:
        """A job variable of a deployment, ``None`` without one; at most ``FLOW_LIFETIME`` old."""
        return self._basics.get(deployment_id).job_variables.get(name)
