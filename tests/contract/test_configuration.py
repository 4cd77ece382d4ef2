"""What a run's job is made of: deployment, flow, blocks, variables."""

from __future__ import annotations

from uuid import uuid4

import pytest

from dispatcher import errors
from dispatcher.prefect_api import client, schemas
from dispatcher.testing import prefect_objects


def test_a_deployment_with_all_that_a_launch_needs(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
) -> None:
    created = objects.deployment(
        pool.name,
        name="my deployment",
        entrypoint="flows.py:hello",
        path="/opt/flows",
        pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": "/"}}],
        job_variables={"env": {"A": "1"}},
        tags=["t"],
    )
    read = prefect.read_deployment(created.id)
    assert read == created
    assert (read.name, read.entrypoint, read.path) == (
        "my deployment",
        "flows.py:hello",
        "/opt/flows",
    )
    assert read.job_variables == {"env": {"A": "1"}}
    assert read.pull_steps is not None
    assert len(read.pull_steps) == 1
    assert (read.work_pool_name, read.work_queue_name) == (pool.name, "default")
    assert read.tags == ("t",)
    assert read.updated is not None
    assert prefect.read_flow(read.flow_id).id == created.flow_id


def test_unknown_deployments_and_flows_are_not_found(prefect: client.PrefectClient) -> None:
    with pytest.raises(errors.ObjectNotFound) as deployment:
        prefect.read_deployment(uuid4())
    with pytest.raises(errors.ObjectNotFound) as flow:
        prefect.read_flow(uuid4())
    assert (deployment.value.detail, flow.value.detail) == (
        "Deployment not found",
        "Flow not found",
    )


def test_a_run_into_a_new_queue_creates_the_queue(
    prefect: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    pool: schemas.WorkPool,
    deployment: schemas.Deployment,
) -> None:
    objects.run(deployment, work_queue_name="made by a run")
    assert prefect.read_work_queue(pool.name, "made by a run").priority == 2


def test_secrets_of_a_block_come_in_clear(
    prefect: client.PrefectClient, objects: prefect_objects.PrefectObjects
) -> None:
    data = {"user": "me", "password": "hunter2", "login": {"token": "t0ken", "site": "s"}}
    created = objects.block(data, secret_fields=("password", "login.token"))
    assert created.data["password"] == "********"
    assert created.data["login"] == {"token": "********", "site": "s"}
    assert created.block_type_slug is not None
    assert created.name is not None
    by_name = prefect.read_block_document(created.block_type_slug, created.name)
    by_id = prefect.read_block_document_by_id(created.id)
    assert by_name == by_id
    assert by_name is not None
    assert by_name.data == data
    assert "hunter2" not in repr(by_name)


def test_a_block_that_does_not_exist(
    prefect: client.PrefectClient, objects: prefect_objects.PrefectObjects
) -> None:
    known = objects.block({"a": "1"})
    assert known.block_type_slug is not None
    assert prefect.read_block_document(known.block_type_slug, "nope") is None
    assert prefect.read_block_document("no-such-type", "nope") is None
    assert prefect.read_block_document_by_id(uuid4()) is None


@pytest.mark.parametrize("value", ["text", 3, None, {"a": [1, 2]}, [True, "x"]])
def test_a_variable_is_any_json(
    value: object, prefect: client.PrefectClient, objects: prefect_objects.PrefectObjects
) -> None:
    name = prefect_objects.new_name("variable")
    objects.variable(name, value)
    variable = prefect.read_variable(name)
    assert variable is not None
    assert (variable.name, variable.value) == (name, value)


def test_a_variable_that_does_not_exist(prefect: client.PrefectClient) -> None:
    assert prefect.read_variable("no-such-variable") is None


def test_variables_by_a_name_that_is_taken_or_impossible(
    objects: prefect_objects.PrefectObjects,
) -> None:
    name = prefect_objects.new_name("variable")
    objects.variable(name, 1)
    with pytest.raises(errors.ObjectAlreadyExists):
        objects.variable(name, 2)
    with pytest.raises(errors.RequestRefused, match="must only contain lowercase"):
        objects.variable("Not a name", 1)
