"""Whose a job is, as labels and variables of it say: its run, flow, deployment, pool and worker."""

from __future__ import annotations

import functools
from datetime import UTC
from importlib import metadata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dispatcher.prefect_api import schemas

PREFECT_DISTRIBUTION = "prefect"


def attribution_environment(
    flow_run: schemas.FlowRun,
    deployment: schemas.Deployment | None,
    flow: schemas.Flow | None,
    worker_name: str | None,
) -> dict[str, str]:
    """Return what lets the job's own API requests say whose they are."""
    env: dict[str, Any] = {
        "PREFECT__WORKER_NAME": worker_name,
        "PREFECT__FLOW_ID": flow_run.flow_id,
        "PREFECT__FLOW_NAME": flow.name if flow else None,
        "PREFECT__DEPLOYMENT_ID": flow_run.deployment_id,
        "PREFECT__DEPLOYMENT_NAME": deployment.name if deployment else None,
    }
    return {name: str(value) for name, value in env.items() if value is not None}


def flow_run_labels(
    flow_run: schemas.FlowRun, distribution: str = PREFECT_DISTRIBUTION
) -> dict[str, str]:
    """Return the labels of a run's job that tell which run it is and what Prefect runs it.

    The version is that of the Prefect installed beside the dispatcher; without one there is no
    such label, since the version of the dispatcher would say something else.
    """
    labels = {
        "prefect.io/flow-run-id": str(flow_run.id),
        "prefect.io/flow-run-name": flow_run.name,
    }
    if version := _version(distribution):
        labels["prefect.io/version"] = version
    return labels


@functools.cache
def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def placement_labels(work_pool: schemas.WorkPool | None, worker_name: str | None) -> dict[str, str]:
    """The labels that tell where a run is executed and by whom."""
    labels = {}
    if work_pool is not None:
        labels["prefect.io/work-pool-name"] = work_pool.name
        labels["prefect.io/work-pool-id"] = str(work_pool.id)
    if worker_name is not None:
        labels["prefect.io/worker-name"] = worker_name
    return labels


def flow_labels(flow: schemas.Flow | None) -> dict[str, str]:
    """The labels of a run's flow, none without one."""
    if flow is None:
        return {}
    return {"prefect.io/flow-id": str(flow.id), "prefect.io/flow-name": flow.name}


def deployment_labels(deployment: schemas.Deployment | None) -> dict[str, str]:
    """The labels of a run's deployment, none without one."""
    if deployment is None:
        return {}
    labels = {
        "prefect.io/deployment-id": str(deployment.id),
        "prefect.io/deployment-name": deployment.name,
    }
    if deployment.updated is not None:
        labels["prefect.io/deployment-updated"] = deployment.updated.astimezone(UTC).isoformat()
    return labels
