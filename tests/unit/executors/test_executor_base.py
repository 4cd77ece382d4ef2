"""The executor base class, its default templates, and how installed executors are found."""

from __future__ import annotations

import logging
import re
import subprocess
import sys
import threading
import uuid
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field

import executors
from dispatcher.prefect_api import schemas
from executors import base, configuration


class Configuration(configuration.BaseJobConfiguration):
    """The fields of Prefect's process pools."""

    stream_output: bool = True
    working_dir: Path | None = None


class Variables(configuration.BaseVariables):
    """The variables of Prefect's process pools."""

    stream_output: bool = Field(default=True, description="…")
    working_dir: Path | None = Field(default=None, title="Working Directory", description="…")


class Process(base.BaseExecutor):
    """An executor with everything set."""

    type = "process"
    job_configuration = Configuration
    job_configuration_variables = Variables
    _description = "Runs processes."
    _documentation_url = "https://example.org/docs"
    _logo_url = "https://example.org/logo.png"

    def run(
        self, flow_run: schemas.FlowRun, configuration: Any, started: Callable[[str], None]
    ) -> base.ExecutorResult:
        started("host:1")
        return base.ExecutorResult(identifier="host:1", status_code=0)


class TemplatedConfiguration(configuration.BaseJobConfiguration):
    """A field with a template of its own."""

    size: int = Field(default=1, json_schema_extra={"template": "{{ sizes.of_job }}"})


class Bare(base.BaseExecutor):
    """An executor that offers its configuration's own fields as variables."""

    type = "bare"
    job_configuration = TemplatedConfiguration
    run = Process.run


class Nameless(base.BaseExecutor):
    """An executor without a type."""

    run = Process.run


NO_EXECUTOR = "a module-level text"


# Default templates


@pytest.fixture(scope="module")
def prefect_template() -> dict[str, Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from prefect.workers.process import ProcessWorker
    template: dict[str, Any] = ProcessWorker.get_default_base_job_template()
    return template


def with_descriptions_emptied(template: dict[str, Any]) -> dict[str, Any]:
    """Descriptions are prose for the user, and ours; that one is there matters."""
    for attributes in template["variables"]["properties"].values():
        assert attributes["description"]
        attributes["description"] = ""
    return template


def test_the_default_template_of_a_process_pool_is_prefects_key_for_key(
    prefect_template: dict[str, Any],
) -> None:
    template = Process.get_default_base_job_template()
    assert with_descriptions_emptied(template) == with_descriptions_emptied(prefect_template)
    for part in ("job_configuration", "variables"):
        assert list(template[part]) == list(prefect_template[part])
    names = list(template["variables"]["properties"])
    assert names == list(prefect_template["variables"]["properties"])


def test_without_variables_of_its_own_a_template_offers_the_configurations_fields() -> None:
    template = Bare.get_default_base_job_template()
    assert template["job_configuration"]["size"] == "{{ sizes.of_job }}"
    assert template["variables"]["properties"]["size"] == {
        "default": 1,
        "title": "Size",
        "type": "integer",
    }
    assert set(template["variables"]) == {"properties", "type"}


def test_each_caller_gets_a_template_of_its_own() -> None:
    Process.get_default_base_job_template()["variables"]["properties"].clear()
    assert "env" in Process.get_default_base_job_template()["variables"]["properties"]


def test_a_default_template_makes_a_configuration_with_the_defaults() -> None:
    class Reader:
        def read_block_document(self, type_slug: str, name: str) -> None:
            raise AssertionError

        def read_block_document_by_id(self, block_document_id: str) -> None:
            raise AssertionError

        def read_variable(self, name: str) -> Any:
            raise AssertionError

    built = Configuration.from_template_and_values(
        Process.get_default_base_job_template(), {"working_dir": "/srv"}, Reader()
    )
    assert built == Configuration(working_dir=Path("/srv"))


# The base class


def test_an_executor_describes_itself() -> None:
    assert Process.get_description() == "Runs processes."
    assert Process.get_documentation_url() == "https://example.org/docs"
    assert Process.get_logo_url() == "https://example.org/logo.png"


def test_an_executor_need_not_describe_itself() -> None:
    assert Nameless.get_description() == ""
    assert Nameless.get_documentation_url() == ""
    assert Nameless.get_logo_url() == ""


def test_an_executor_must_run_jobs() -> None:
    with pytest.raises(TypeError, match="abstract method"):
        base.BaseExecutor()  # type: ignore[abstract]


def test_running_reports_the_infrastructure_pid_and_how_the_job_ended() -> None:
    flow_run = schemas.FlowRun(id=uuid.uuid4(), flow_id=uuid.uuid4())
    pids: list[str] = []
    result = Process().run(flow_run, Configuration(), pids.append)
    assert pids == ["host:1"]
    assert (result.identifier, result.status_code) == ("host:1", 0)
    assert result.reported_state is None


def test_an_executor_that_cannot_kill_says_so() -> None:
    with pytest.raises(NotImplementedError, match="the process executor cannot stop"):
        Process().kill_infrastructure("host:1", Configuration(), grace_seconds=1.0)


# The registry


def entry_point(name: str, value: str) -> metadata.EntryPoint:
    return metadata.EntryPoint(name=name, value=value, group=executors.ENTRY_POINT_GROUP)


def registry_of(*points: metadata.EntryPoint) -> executors.ExecutorRegistry:
    return executors.ExecutorRegistry(lambda: points)


PROCESS = entry_point("process", f"{__name__}:Process")
BARE = entry_point("bare", f"{__name__}:Bare")


def test_executors_are_found_by_type() -> None:
    registry = registry_of(PROCESS, BARE)
    assert registry.get("process") is Process
    assert registry.get("bare") is Bare
    assert registry.get("bare") is Bare
    assert registry.get("ecs") is None
    assert registry.types() == ["bare", "process"]


def test_nothing_is_imported_or_even_looked_for_before_it_is_asked_for() -> None:
    asked: list[str] = []

    def points() -> Iterable[metadata.EntryPoint]:
        asked.append("once")
        return [PROCESS, entry_point("broken", "no_such_module_at_all:X")]

    registry = executors.ExecutorRegistry(points)
    assert asked == []
    assert registry.get("process") is Process
    assert registry.types() == ["process"]
    assert registry.types() == ["process"]
    assert asked == ["once"]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("no_such_module_at_all:X", "ModuleNotFoundError: No module named 'no_such_module_at_all'"),
        (f"{__name__}:NoSuchClass", "AttributeError: .* has no attribute 'NoSuchClass'"),
        (f"{__name__}:Nameless", "AttributeError: .* has no attribute 'type'"),
        (f"{__name__}:NO_EXECUTOR", "AttributeError: .* has no attribute 'type'"),
        ("tests.unit.fixtures_that_do_not_exist", "ModuleNotFoundError: .*"),
    ],
)
def test_an_unusable_executor_is_reported_once_and_leaves_the_others_alone(
    caplog: pytest.LogCaptureFixture, value: str, reason: str
) -> None:
    registry = registry_of(entry_point("broken", value), PROCESS)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            assert registry.get("broken") is None
            assert registry.types() == ["process"]
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"'broken' ({value})" in record.getMessage()
    assert re.search(reason, record.getMessage())


def test_a_type_that_differs_from_the_entry_points_name_is_reported_and_the_name_counts(
    caplog: pytest.LogCaptureFixture,
) -> None:
    registry = registry_of(entry_point("mine", f"{__name__}:Process"))
    with caplog.at_level(logging.WARNING):
        assert registry.get("mine") is Process
        assert registry.get("process") is None
        assert registry.types() == ["mine"]
    [record] = caplog.records
    assert "'mine'" in record.getMessage()
    assert "'process'" in record.getMessage()


def test_many_threads_may_ask_at_once() -> None:
    registry = registry_of(PROCESS, BARE)
    barrier = threading.Barrier(8)
    found: list[object] = []

    def ask() -> None:
        barrier.wait()
        found.append((registry.get("process"), registry.types()))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [(Process, ["bare", "process"])] * 8


def test_the_process_executor_is_installed() -> None:
    assert "process" in executors.get_all_available_executor_types()
    found = executors.get_executor_class_from_type("process")
    assert found is not None
    assert found.type == "process"
    assert executors.get_executor_class_from_type("no such type") is None


def test_importing_the_registry_imports_no_executor_and_nothing_heavy() -> None:
    code = (
        "import sys, executors\n"
        "heavy = {'pydantic', 'prefect', 'celery', 'httpx', 'executors.base'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True
    ).stdout
    assert printed.strip() == "[]"
