"""What users do to queues, pools and deployments while their runs are executed."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import dataclass

from dispatcher import errors
from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects

Objects = prefect_objects.PrefectObjects


@dataclass(frozen=True)
class Target:
    """A run's surroundings, which are its own; ``elsewhere`` is a pool that nobody serves."""

    pool: str
    queue: str
    deployment: schemas.Deployment
    elsewhere: str


def delete_queue(objects: Objects, target: Target) -> None:
    """The run is in no pool any more."""
    _request(objects, "DELETE", "/work_pools/{pool}/queues/{queue}", target)


def rename_queue(objects: Objects, target: Target) -> None:
    """The run's queue is still there, under another name."""
    body = {"name": f"{target.queue}-renamed"}
    _request(objects, "PATCH", "/work_pools/{pool}/queues/{queue}", target, body)


def delete_deployment(objects: Objects, target: Target) -> None:
    """Nobody knows any more with which variables the run was started."""
    _request(objects, "DELETE", "/deployments/{deployment}", target)


def move_deployment(objects: Objects, target: Target) -> None:
    """Further runs of the deployment are none of ours."""
    body = {"work_pool_name": target.elsewhere, "work_queue_name": None}
    _request(objects, "PATCH", "/deployments/{deployment}", target, body)


def delete_pool(objects: Objects, target: Target) -> None:
    """All runs of the pool are in none any more, until it is created anew."""
    _request(objects, "DELETE", "/work_pools/{pool}", target)


Meddle = Callable[[Objects, Target], None]
IN_POOL: tuple[Meddle, ...] = (delete_queue, rename_queue, delete_deployment, move_deployment)


def _request(
    objects: Objects, method: str, route: str, target: Target, body: object = None
) -> None:
    names = {
        "pool": target.pool,
        "queue": target.queue,
        "deployment": str(target.deployment.id),
    }
    # It may have been done by a request whose answer was lost.
    with contextlib.suppress(errors.ObjectNotFound):
        objects.client.transport.request(method, route, names=names, json=body)
