"""The docker executor's job configuration and what becomes of it; no engine is needed."""

from __future__ import annotations

import json
import os
import uuid
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dispatcher.prefect_api import schemas
from dispatcher.testing.executors import NoReferences, new_flow_run
from executors import docker, errors
from executors.docker import configuration, containers

TEXT: dict[str, Any] = {"anyOf": [{"type": "string"}, {"type": "null"}], "default": None}

# The variables of prefect-docker 0.7.4, without descriptions and examples, in its order.
PREFECTS: dict[str, dict[str, Any]] = {
    "command": {**TEXT, "title": "Command"},
    "env": {
        "additionalProperties": {"anyOf": [{"type": "string"}, {"type": "null"}]},
        "title": "Environment Variables",
        "type": "object",
    },
    "labels": {"additionalProperties": {"type": "string"}, "title": "Labels", "type": "object"},
    "name": {**TEXT, "title": "Name"},
    "image": {"title": "Image", "type": "string"},
    "registry_credentials": {
        "anyOf": [{"$ref": "#/definitions/RegistryCredentials"}, {"type": "null"}],
        "default": None,
    },
    "image_pull_policy": {
        "anyOf": [
            {"enum": ["IfNotPresent", "Always", "IfPossible", "Never"], "type": "string"},
            {"type": "null"},
        ],
        "default": None,
        "title": "Image Pull Policy",
    },
    "networks": {"items": {"type": "string"}, "title": "Networks", "type": "array"},
    "network_mode": {**TEXT, "title": "Network Mode"},
    "auto_remove": {"default": False, "title": "Auto Remove", "type": "boolean"},
    "volumes": {"items": {"type": "string"}, "title": "Volumes", "type": "array"},
    "stream_output": {"default": True, "title": "Stream Output", "type": "boolean"},
    "mem_limit": {**TEXT, "title": "Memory Limit"},
    "memswap_limit": {**TEXT, "title": "Memory Swap Limit"},
    "privileged": {"default": False, "title": "Privileged", "type": "boolean"},
    "container_create_kwargs": {
        "anyOf": [{"additionalProperties": True, "type": "object"}, {"type": "null"}],
        "default": None,
        "title": "Container Configuration",
    },
}


def configure(
    flow_run: schemas.FlowRun | None = None, **variables: Any
) -> configuration.DockerJobConfiguration:
    made = docker.DockerJobConfiguration.from_template_and_values(
        docker.DockerExecutor.get_default_base_job_template(), variables, NoReferences()
    )
    made.prepare_for_flow_run(flow_run or new_flow_run())
    return made


def run_named(name: str, **values: Any) -> schemas.FlowRun:
    return schemas.FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4(), name=name, **values)


@pytest.fixture(autouse=True)
def no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("PREFECT_"):
            monkeypatch.delenv(name)


# Memory


def test_the_limit_that_all_executors_know_is_the_containers_with_its_swap() -> None:
    made = configure(memory_limit="2GiB")
    assert (made.mem_limit, made.memswap_limit) == (f"{2 * 2**30}b", f"{2 * 2**30}b")


def test_a_limit_in_dockers_own_variable_counts_more() -> None:
    made = configure(memory_limit="2GiB", mem_limit="64m")
    assert (made.mem_limit, made.memswap_limit) == ("64m", None)


def test_a_limit_that_nobody_understands_is_refused() -> None:
    with pytest.raises(errors.ConfigurationError, match="memory_limit"):
        configure(memory_limit="much")


# The template


def test_the_default_template_has_the_fields_of_prefect_docker_key_for_key() -> None:
    template = docker.DockerExecutor.get_default_base_job_template()
    assert template["job_configuration"] == {name: f"{{{{ {name} }}}}" for name in PREFECTS}
    properties = template["variables"]["properties"]
    assert list(properties) == list(PREFECTS)
    for attributes in properties.values():
        assert attributes.pop("description")
        attributes.pop("examples", None)
    assert properties == PREFECTS


def test_prefects_ui_knows_what_block_holds_the_credentials() -> None:
    template = docker.DockerExecutor.get_default_base_job_template()
    [definition] = template["variables"]["definitions"].values()
    assert definition["block_type_slug"] == "docker-registry-credentials"
    assert definition["secret_fields"] == ["password"]
    assert definition["required"] == ["username", "password", "registry_url"]


def test_without_job_variables_it_runs_prefects_own_image_of_this_version() -> None:
    made = configure()
    assert made.image.startswith("prefecthq/prefect:3.")
    assert made.command == "prefect flow-run execute"


def test_credentials_are_in_no_representation() -> None:
    credentials = {"username": "me", "password": "hush", "registry_url": "registry.example"}
    made = configure(registry_credentials=credentials)
    assert made.registry_credentials is not None
    assert made.registry_credentials.password.get_secret_value() == "hush"
    assert "hush" not in f"{made!r} {made.registry_credentials!r}"


def test_a_refused_variable_is_named_without_its_value() -> None:
    with pytest.raises(errors.ConfigurationError, match="image_pull_policy") as caught:
        configure(image_pull_policy="hush")
    assert "hush" not in str(caught.value)


# Images


@pytest.mark.parametrize(
    ("image", "policy"),
    [
        ("flows", "Always"),
        ("flows:latest", "Always"),
        ("flows:1", "IfNotPresent"),
        ("registry.example:5000/team/flows", "Always"),
        ("registry.example:5000/team/flows:2", "IfNotPresent"),
        ("flows@sha256:0123", "IfNotPresent"),
    ],
)
def test_without_a_policy_the_tag_decides_when_to_pull(image: str, policy: str) -> None:
    assert configure(image=image).get_pull_policy() == policy
    assert configure(image=image, image_pull_policy="Never").get_pull_policy() == "Never"


# Volumes


@pytest.mark.parametrize(
    "volume",
    ["/data:/data", "/data:/data:ro", "./here:/there", "..:/up", "name:/data:rw", "/anonymous"],
)
def test_volumes_are_taken_as_docker_writes_them(volume: str) -> None:
    assert configure(volumes=[volume]).volumes == [volume]


@pytest.mark.parametrize("volume", ["", "name", "$(pwd):/x", "/data:relative", "/a:/b:exec"])
def test_what_is_no_volume_is_refused_before_there_is_a_container(volume: str) -> None:
    with pytest.raises(ValidationError):
        docker.DockerJobConfiguration(volumes=[volume])


def test_relative_paths_start_at_the_workers_directory() -> None:
    made = configure(volumes=["./data:/data", "name:/data", "/abs:/data"])
    assert containers.settings(made)["volumes"] == [
        f"{Path.cwd() / 'data'}:/data",
        "name:/data",
        "/abs:/data",
    ]


# Reaching Prefect's API


def test_an_api_on_the_loopback_interface_is_reached_through_the_hosts_network(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    made = configure()
    assert made.get_network_mode() == "host"
    assert made.env["PREFECT_API_URL"] == "http://127.0.0.1:4200/api"


@pytest.mark.parametrize("variables", [{"networks": ["a"]}, {"network_mode": "bridge"}])
def test_in_a_network_of_its_own_a_container_reaches_it_by_the_hosts_alias(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, Any]
) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://localhost:4200/api")
    made = configure(**variables)
    assert made.get_network_mode() == variables.get("network_mode")
    assert made.env["PREFECT_API_URL"] == "http://host.docker.internal:4200/api"
    assert made.get_extra_hosts() == {"host.docker.internal": "host-gateway"}


def test_an_address_of_the_jobs_own_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:4200/api")
    own = "http://localhost:1/api"
    made = configure(network_mode="bridge", env={"PREFECT_API_URL": own})
    assert made.env["PREFECT_API_URL"] == own


def test_a_remote_api_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "https://prefect.example/api")
    made = configure()
    assert made.get_network_mode() is None
    assert made.get_extra_hosts() == {}


@pytest.mark.parametrize("given", [["db:10.0.0.1"], {"db": "10.0.0.1"}])
def test_the_jobs_own_hosts_are_added(given: object) -> None:
    made = configure(container_create_kwargs={"extra_hosts": given})
    hosts = {"host.docker.internal": "host-gateway", "db": "10.0.0.1"}
    assert containers.settings(made)["extra_hosts"] == hosts


# The container's settings


def test_further_arguments_do_not_replace_job_variables() -> None:
    further = {"cpu_quota": 1000, "image": "other", "command": "rm", "env": {"A": "1"}}
    made = containers.settings(configure(image="flows:1", container_create_kwargs=further))
    assert made["cpu_quota"] == 1000
    assert made["image"] == "flows:1"
    assert made["command"] == "prefect flow-run execute"
    assert "env" not in made


def test_null_removes_a_variable_of_the_image() -> None:
    made = configure(env={"GONE": None, "KEPT": "1"})
    environment = containers.settings(made)["environment"]
    assert environment["GONE"] is None
    assert environment["KEPT"] == "1"


def test_labels_are_written_as_dockers_are_and_name_the_run_and_the_attempt() -> None:
    attempt = uuid.uuid4()
    state = {"type": "PENDING", "name": "Pending", "state_details": {"transition_id": attempt}}
    run = run_named("run", state=state)
    labels = configure(run, labels={"team": "a", "a.b/c": "d"}).labels
    assert labels[configuration.FLOW_RUN_LABEL] == str(run.id)
    assert labels[configuration.ATTEMPT_LABEL] == str(attempt)
    assert labels["team"] == "a"
    assert labels["b.a.c"] == "d"
    assert not any("/" in name for name in labels)
    json.dumps(labels)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("spotted-eel", "spotted-eel"),
        ("My Run: 1/2", "My-Run-1-2"),
        ("--.x", "x"),
        ("Café", "Cafe"),
        ("日本", None),
        ("a" * 300, "a" * 250),
    ],
)
def test_names_become_what_docker_takes(name: str, expected: str | None) -> None:
    assert configuration.container_name(name) == expected
