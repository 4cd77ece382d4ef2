"""What the catalog remembers, for how long, and what it never remembers."""

from __future__ import annotations

from concurrent import futures
from uuid import uuid4

import pytest

from dispatcher import errors
from dispatcher.prefect_api import catalog, client
from dispatcher.preparation import template_references
from dispatcher.testing import prefect_api, prefect_objects
from executors import templates

READ_POOL = ("GET", "/work_pools/{pool}")
READ_DEPLOYMENT = ("GET", "/deployments/{id}")
READ_FLOW = ("GET", "/flows/{id}")


class Clock:
    """A monotonic clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def known(api: client.PrefectClient, clock: Clock) -> catalog.Catalog:
    return catalog.Catalog(api, monotonic=clock)


def test_a_pool_is_read_once_in_its_lifetime(
    known: catalog.Catalog,
    clock: Clock,
    prefect: prefect_api.FakePrefect,
    objects: prefect_objects.PrefectObjects,
) -> None:
    objects.pool("a", description="old")
    first = known.pool("a")
    objects.change_pool("a", is_paused=True)
    clock.seconds += catalog.POOL_LIFETIME - 0.1
    assert known.pool("a") is first
    assert prefect.requests[READ_POOL] == 1
    clock.seconds += 0.1
    assert known.pool("a").is_paused
    assert prefect.requests[READ_POOL] == 2


def test_deployments_and_flows_have_lifetimes_of_their_own(
    known: catalog.Catalog,
    clock: Clock,
    prefect: prefect_api.FakePrefect,
    objects: prefect_objects.PrefectObjects,
) -> None:
    objects.pool("a")
    deployment = objects.deployment("a", flow="etl")
    for _ in range(2):
        assert known.deployment(deployment.id).name == deployment.name
        assert known.flow(deployment.flow_id).name == "etl"
    clock.seconds += catalog.DEPLOYMENT_LIFETIME
    known.deployment(deployment.id)
    known.flow(deployment.flow_id)
    assert (prefect.requests[READ_DEPLOYMENT], prefect.requests[READ_FLOW]) == (2, 1)
    clock.seconds += catalog.FLOW_LIFETIME
    known.flow(deployment.flow_id)
    assert prefect.requests[READ_FLOW] == 2


def test_what_does_not_exist_is_asked_for_again(
    known: catalog.Catalog, objects: prefect_objects.PrefectObjects
) -> None:
    with pytest.raises(errors.ObjectNotFound):
        known.pool("a")
    with pytest.raises(errors.ObjectNotFound):
        known.deployment(uuid4())
    with pytest.raises(errors.ObjectNotFound):
        known.flow(uuid4())
    objects.pool("a")
    assert known.pool("a").name == "a"


def test_what_was_deleted_is_missed_once_its_lifetime_is_over(
    known: catalog.Catalog, clock: Clock, objects: prefect_objects.PrefectObjects
) -> None:
    objects.pool("a")
    known.pool("a")
    objects.delete_pool("a")
    assert known.pool("a").name == "a"
    clock.seconds += catalog.POOL_LIFETIME
    with pytest.raises(errors.ObjectNotFound):
        known.pool("a")


def test_the_memory_does_not_grow_without_end(
    known: catalog.Catalog,
    prefect: prefect_api.FakePrefect,
    objects: prefect_objects.PrefectObjects,
) -> None:
    flows = [objects.flow(f"flow-{number}").id for number in range(catalog.MAX_ENTRIES + 1)]
    for flow_id in flows:
        known.flow(flow_id)
    known.flow(flows[-1])
    assert prefect.requests[READ_FLOW] == len(flows)
    known.flow(flows[0])  # was dropped
    assert prefect.requests[READ_FLOW] == len(flows) + 1


def test_many_threads_share_a_catalog(
    known: catalog.Catalog, objects: prefect_objects.PrefectObjects
) -> None:
    for number in range(5):
        objects.pool(f"pool-{number}")
    names = [f"pool-{number % 5}" for number in range(200)]
    with futures.ThreadPoolExecutor(8) as pool:
        assert [found.name for found in pool.map(known.pool, names)] == names


# What is never remembered


def test_blocks_and_variables_are_read_anew_each_time(
    api: client.PrefectClient, objects: prefect_objects.PrefectObjects
) -> None:
    reader = template_references.References(api)
    block = objects.block({"token": "s3cret"}, secret_fields=("token",))
    objects.variable("region", None)
    by_id = reader.read_block_document_by_id(str(block.id))
    assert by_id is not None
    assert by_id.data == {"token": "s3cret"}
    assert by_id == reader.read_block_document(block.block_type_slug or "", block.name or "")
    assert reader.read_variable("region") is None
    assert "s3cret" not in repr(vars(reader))


def test_what_a_template_refers_to_may_not_exist(api: client.PrefectClient) -> None:
    reader = template_references.References(api)
    assert reader.read_block_document("secret", "none") is None
    assert reader.read_block_document_by_id(str(uuid4())) is None
    assert reader.read_block_document_by_id("not an id") is None
    assert reader.read_variable("none") is templates.MISSING
