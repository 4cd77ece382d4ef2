from __future__ import annotations

import shlex
import sys
import uuid
from pathlib import Path
from typing import Any

import pytest
from prefect.workers.process import ProcessWorker

import executors
from dispatcher.prefect_api import schemas
from dispatcher.testing.executors import NoReferences
from executors.process import ProcessExecutor, ProcessJobConfiguration, ProcessVariables

FLOW_RUN = schemas.FlowRun(id=uuid.uuid4(), name="run", flow_id=uuid.uuid4())


def template(part: str) -> tuple[Any, Any]:
    """A part of our default template and of Prefect's."""
    return (
        ProcessExecutor.get_default_base_job_template()[part],
        ProcessWorker.get_default_base_job_template()[part],
    )


def test_the_default_job_configuration_is_that_of_prefects_process_pools() -> None:
    ours, prefects = template("job_configuration")

    assert ours == prefects


def test_the_default_variables_are_those_of_prefects_process_pools_but_for_their_texts() -> None:
    ours, prefects = template("variables")

    for properties in (ours["properties"], prefects["properties"]):
        for attributes in properties.values():
            assert attributes.pop("description")
    assert ours == prefects


def test_the_executor_serves_process_pools() -> None:
    assert executors.get_executor_class_from_type("process") is ProcessExecutor
    assert ProcessExecutor.job_configuration_variables is ProcessVariables


def test_the_default_command_is_the_engine_under_this_interpreter() -> None:
    configuration = ProcessJobConfiguration()

    configuration.prepare_for_flow_run(FLOW_RUN)

    assert configuration.command is not None
    assert shlex.split(configuration.command) == [sys.executable, "-m", "prefect.engine"]


def test_a_command_of_the_users_own_stays() -> None:
    configuration = ProcessJobConfiguration(command="sh run.sh")

    configuration.prepare_for_flow_run(FLOW_RUN)

    assert configuration.command == "sh run.sh"


@pytest.mark.parametrize("value", [None, "/data"])
def test_the_working_directory_is_a_path(value: str | None) -> None:
    configuration = ProcessJobConfiguration.model_validate({"working_dir": value})

    assert configuration.working_dir == (None if value is None else Path(value))


@pytest.mark.parametrize(
    ("value", "expected"), [(None, False), (False, False), (True, True), ("yes", False), (1, False)]
)
def test_a_run_may_want_what_its_flow_moved_away_to_end_with_it(
    value: object, expected: bool
) -> None:
    made = ProcessJobConfiguration.from_template_and_values(
        ProcessExecutor.get_default_base_job_template(), {"kill_escaped": value}, NoReferences()
    )
    assert made.kills_escaped is expected
