"""What a job gets of its work pool, its deployment and its run, seen from inside the job."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from dispatcher.prefect_api import schemas
from dispatcher.testing import prefect_objects
from executors import process
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

CHANGE_SECONDS = 60.0  # a template is remembered for 15 s
QUIET, LOUD = "nobody-hears-this", "everybody-hears-this"

LEVELS = ("HARD", "DEFAULT", "DEPLOYMENT", "RUN")


def template(**defaults: str) -> dict[str, Any]:
    """The default template with an environment of its own, and more variables."""
    made = process.ProcessExecutor.get_default_base_job_template()
    made["job_configuration"]["env"] = {
        **dict.fromkeys(LEVELS, "hard"),
        "WHOLE": "{{ number }}",
        "EMBEDDED": "number {{ number }}.",
        "NOT_GIVEN": "{{ not_given }}",
        "BLOCK": "{{ block }}",
        "FROM_WORKER": "{{ $TEST_WORKER_VARIABLE }}",
        "NOT_IN_WORKER": "path/{{ $TEST_NO_SUCH_VARIABLE }}",
    }
    made["variables"]["properties"].update(
        env={"type": "object", "default": dict.fromkeys(LEVELS[1:], "default") | defaults},
        number={"type": "integer", "default": 5},
        not_given={"type": "string"},
        block={"type": "object"},
    )
    # A server takes no placeholder in a template that is not declared, not even these.
    for name in ("$TEST_WORKER_VARIABLE", "$TEST_NO_SUCH_VARIABLE"):
        made["variables"]["properties"][name] = {"type": "string"}
    return made


@pytest.fixture(scope="module")
def stack(
    new_stack: NewStack, server_objects: prefect_objects.PrefectObjects
) -> Iterator[stacks.Stack]:
    """Serves a pool with a template of its own, and one whose template a test changes."""
    pools = [
        server_objects.pool(base_job_template=template()).name,
        server_objects.pool(base_job_template=template(VERSION="first")).name,
    ]
    with new_stack(*pools, TEST_WORKER_VARIABLE="of the worker", TEST_INHERITED="too") as stack:
        stack.worker_with_beat(concurrency=5)
        for pool in pools:
            stack.wait_until_served(pool)
        yield stack


@pytest.fixture(scope="module")
def runs(stack: stacks.Stack) -> dict[str, stacks.Run]:
    """Runs of every kind, all submitted at once."""
    directory = stack.directory / "given"
    directory.mkdir()
    light = stack.deployment("none")
    engine = stack.deployment("notes", file="dispatch_flows.py")

    def run(*steps: str, **job_variables: Any) -> stacks.Run:
        return light_jobs.run(stack, light, *steps, job_variables=job_variables)

    return {
        "merged": merged_run(stack),
        "given directory": run(*light_jobs.COMPLETE, working_dir=str(directory)),
        "one": run(*light_jobs.COMPLETE),
        "other": run(*light_jobs.COMPLETE),
        "quiet": run(f"say:{QUIET}", *light_jobs.COMPLETE, stream_output=False),
        "loud": run(f"say:{LOUD}", *light_jobs.COMPLETE),
        "empty command": stack.run(engine, job_variables={"command": ""}),
        "null command": stack.run(engine, job_variables={"command": None}),
    }


def merged_run(stack: stacks.Stack) -> stacks.Run:
    """A run to whose environment everything contributes that can."""
    secret = stack.objects.block({"key": "in clear"}, secret_fields=("key",))
    whole = stack.objects.block({"a": "whole"})
    variable = prefect_objects.new_name("variable").replace("-", "_")
    stack.objects.variable(variable, "of a variable")
    document = stack.objects.client.read_block_document_by_id(secret.id)
    assert document is not None
    slug = document.block_type_slug
    env = {
        "DEPLOYMENT": "deployment",
        "RUN": "deployment",
        "INTEGER": 7,
        "FLAG": True,
        "TEST_INHERITED": None,
        "SECRET": f"{{{{ prefect.blocks.{slug}.{secret.name}.key }}}}",
        "VARIABLE": f"{{{{ prefect.variables.{variable} }}}}",
        "NO_VARIABLE": "[{{ prefect.variables.no_such_variable }}]",
        "NESTED": "nested",
    }
    job_variables = {
        "env": env,
        "env.DOTTED": "dotted",
        "env.NESTED": "dotted",
        "block": {"$ref": {"block_document_id": str(whole.id)}},
    }
    deployment = stack.deployment("none", job_variables=job_variables)
    return light_jobs.run(
        stack, deployment, *light_jobs.COMPLETE, job_variables={"env": {"RUN": "run"}}
    )


@pytest.fixture(scope="module")
def environ(runs: dict[str, stacks.Run]) -> dict[str, str]:
    """The environment of the job that got something from everywhere."""
    assert runs["merged"].wait_for_end().type is State.COMPLETED
    return dict(light_jobs.seen(runs["merged"])[0]["environ"])


def test_the_run_comes_before_the_deployment_before_the_pools_defaults_name_by_name(
    environ: dict[str, str],
) -> None:
    assert [environ[level] for level in LEVELS] == ["hard", "default", "deployment", "run"]


def test_dotted_names_are_set_and_a_nested_one_wins(environ: dict[str, str]) -> None:
    assert (environ["DOTTED"], environ["NESTED"]) == ("dotted", "nested")


def test_null_keeps_a_variable_out_although_the_worker_has_it(environ: dict[str, str]) -> None:
    assert "TEST_INHERITED" not in environ


def test_values_arrive_as_text(environ: dict[str, str]) -> None:
    assert (environ["INTEGER"], environ["FLAG"]) == ("7", "True")


def test_placeholders_are_filled_in_or_removed(environ: dict[str, str]) -> None:
    assert (environ["WHOLE"], environ["EMBEDDED"]) == ("5", "number 5.")
    assert "NOT_GIVEN" not in environ


def test_blocks_variables_and_the_workers_environment_are_resolved_with_secrets_in_clear(
    environ: dict[str, str],
) -> None:
    assert environ["SECRET"] == "in clear"
    assert environ["BLOCK"] == "{'a': 'whole'}"
    assert environ["VARIABLE"] == "of a variable"
    assert environ["NO_VARIABLE"] == "[]"
    assert environ["FROM_WORKER"] == "of the worker"
    assert environ["NOT_IN_WORKER"] == "path/"


def test_a_job_knows_its_run_its_api_and_whose_it_is(
    stack: stacks.Stack, runs: dict[str, stacks.Run], environ: dict[str, str]
) -> None:
    run = runs["merged"].flow_run

    assert environ["PREFECT__FLOW_RUN_ID"] == str(run.id)
    assert environ["PREFECT_API_URL"] == stack.site.api_url
    assert environ["PREFECT__WORKER_NAME"] == "celery-flow-dispatcher"
    assert environ["PREFECT__FLOW_ID"] == str(run.flow_id)
    assert environ["PREFECT__DEPLOYMENT_ID"] == str(run.deployment_id)


def test_a_job_gets_nothing_of_the_dispatchers_own_settings(environ: dict[str, str]) -> None:
    assert [name for name in environ if name.startswith("DISPATCHER_")] == ["DISPATCHER_JOB_ID"]


@pytest.mark.parametrize("name", ["empty command", "null command"])
def test_without_a_command_the_engine_runs_the_flow(runs: dict[str, stacks.Run], name: str) -> None:
    assert runs[name].wait_for_end().type is State.COMPLETED
    assert len(runs[name].lines()) == 1


def test_a_given_directory_is_used_and_kept(
    stack: stacks.Stack, runs: dict[str, stacks.Run]
) -> None:
    run = runs["given directory"]

    assert run.wait_for_end().type is State.COMPLETED
    directory = stack.directory / "given"
    assert light_jobs.seen(run)[0]["cwd"] == str(directory)
    assert directory.is_dir()


def test_without_one_each_job_has_a_directory_of_its_own_that_is_gone_afterwards(
    runs: dict[str, stacks.Run],
) -> None:
    for name in ("one", "other"):
        assert runs[name].wait_for_end().type is State.COMPLETED

    directories = [Path(light_jobs.seen(runs[name])[0]["cwd"]) for name in ("one", "other")]

    assert len(set(directories)) == 2
    waiting.wait_for(
        lambda: not any(directory.exists() for directory in directories),
        seconds=10,
        what="the directories are removed",
    )


def test_what_a_job_prints_is_shown_unless_that_is_switched_off(
    stack: stacks.Stack, runs: dict[str, stacks.Run]
) -> None:
    for name in ("quiet", "loud"):
        assert runs[name].wait_for_end().type is State.COMPLETED

    printed = [line.strip() for line in stack.processes[0].text().splitlines()]

    assert LOUD in printed
    assert QUIET not in printed


def test_a_changed_template_is_for_new_runs_and_the_pools_own_template_stays(
    stack: stacks.Stack,
) -> None:
    _, pool = stack.pools
    deployment = stack.deployment("none", pool=pool)
    gate = stack.directory / "change"
    before = light_jobs.run(
        stack, deployment, "RUNNING", "note", f"wait:{gate}", "note", "COMPLETED"
    )
    light_jobs.wait_until_seen(before)

    changed = template(VERSION="second")
    stack.objects.client.update_work_pool_template(pool, changed)

    def version_of_a_new_run() -> bool:
        run = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
        assert run.wait_for_end().type is State.COMPLETED
        return bool(light_jobs.seen(run)[0]["environ"]["VERSION"] == "second")

    waiting.wait_for(
        version_of_a_new_run, seconds=CHANGE_SECONDS, every=1.0, what="new runs see the change"
    )
    gate.touch()
    assert before.wait_for_end().type is State.COMPLETED
    assert [seen["environ"]["VERSION"] for seen in light_jobs.seen(before)] == ["first"] * 2
    assert stack.objects.client.read_work_pool(pool).base_job_template == changed
