"""The fake answers in the shapes of a real server: it invents no field, and no other type."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from dispatcher.prefect_api import client
from dispatcher.testing import prefect_api, prefect_objects


def pool_row(prefect: client.PrefectClient) -> Any:
    name = prefect_objects.PrefectObjects(prefect).pool().name
    return prefect.transport.request("GET", "/work_pools/{pool}", names={"pool": name})


def queue_rows(prefect: client.PrefectClient) -> Any:
    name = prefect_objects.PrefectObjects(prefect).pool().name
    return prefect.transport.request(
        "POST", "/work_pools/{pool}/queues/filter", names={"pool": name}, json={}
    )


def worker_rows(prefect: client.PrefectClient) -> Any:
    name = prefect_objects.PrefectObjects(prefect).pool().name
    prefect.send_worker_heartbeat(name, "w", 30)
    return prefect.transport.request(
        "POST", "/work_pools/{pool}/workers/filter", names={"pool": name}, json={}
    )


def deployment_row(prefect: client.PrefectClient) -> Any:
    objects = prefect_objects.PrefectObjects(prefect)
    deployment = objects.deployment(objects.pool().name, concurrency_limit=1)
    return prefect.transport.request("GET", "/deployments/{id}", names={"id": str(deployment.id)})


def run_row(prefect: client.PrefectClient) -> Any:
    objects = prefect_objects.PrefectObjects(prefect)
    flow_run = objects.run(objects.deployment(objects.pool().name))
    return prefect.transport.request("GET", "/flow_runs/{id}", names={"id": str(flow_run.id)})


def poll_rows(prefect: client.PrefectClient) -> Any:
    objects = prefect_objects.PrefectObjects(prefect)
    pool = objects.pool().name
    objects.run(objects.deployment(pool))
    return prefect.transport.request(
        "POST", "/work_pools/{pool}/get_scheduled_flow_runs", names={"pool": pool}, json={}
    )


def verdicts(prefect: client.PrefectClient) -> Any:
    objects = prefect_objects.PrefectObjects(prefect)
    flow_run = objects.run(objects.deployment(objects.pool().name))
    body = {"flow_runs": {"id": {"any_": [str(flow_run.id)]}}, "state": {"type": "PENDING"}}
    return prefect.transport.request("POST", "/flow_runs/bulk_set_state", json=body)


def block_row(prefect: client.PrefectClient) -> Any:
    document = prefect_objects.PrefectObjects(prefect).block({"a": "1"})
    return prefect.transport.request("GET", "/block_documents/{id}", names={"id": str(document.id)})


def kinds(value: Any) -> Any:
    """A value's shape: its keys, and the kind of what they hold; null fits anything."""
    match value:
        case dict():
            return {key: kinds(item) for key, item in value.items()}
        case list():
            return [kinds(item) for item in value[:1]]
        case None:
            return None
        case _:
            return type(value).__name__


def foreign(fake: Any, real: Any, where: str = "") -> list[str]:
    """What the fake says and the real server does not."""
    if isinstance(fake, dict) and isinstance(real, dict):
        unknown = [f"{where}.{key}" for key in fake.keys() - real.keys()]
        shared = fake.keys() & real.keys()
        return unknown + [
            item for key in shared for item in foreign(fake[key], real[key], f"{where}.{key}")
        ]
    if isinstance(fake, list) and isinstance(real, list):
        return foreign(fake[0], real[0], f"{where}[]") if fake and real else []
    return [] if fake is None or real is None or fake == real else [f"{where}: {fake} != {real}"]


@pytest.mark.parametrize(
    "ask",
    [
        pool_row,
        queue_rows,
        worker_rows,
        deployment_row,
        run_row,
        poll_rows,
        verdicts,
        block_row,
    ],
)
def test_the_fake_invents_nothing(
    ask: Callable[[client.PrefectClient], Any], prefect_client: client.PrefectClient
) -> None:
    fake = prefect_api.FakePrefect().client()
    assert foreign(kinds(ask(fake)), kinds(ask(prefect_client))) == []
