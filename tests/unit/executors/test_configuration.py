"""Job configurations; those built from a template are built by Prefect as well and compared."""

from __future__ import annotations

import asyncio
import copy
import os
import traceback
import uuid
import warnings
from collections.abc import Callable, Sequence
from importlib import metadata
from types import ModuleType
from typing import Any

import pydantic
import pytest
from pydantic import Field

from dispatcher.prefect_api import schemas
from executors import attribution, configuration, errors
from tests.unit.executors import test_templates as references

Build = Callable[..., configuration.BaseJobConfiguration]

PLAIN = {"command": "{{ command }}", "env": "{{ env }}", "labels": "{{ labels }}"}
PLAIN_TEMPLATE = {
    "job_configuration": {**PLAIN, "name": "{{ name }}"},
    "variables": {"type": "object", "properties": {}},
}

FLOW_ID = "22222222-2222-2222-2222-222222222222"
FLOW = {"id": FLOW_ID, "name": "My Flow", "tags": ["z"]}
DEPLOYMENT = {
    "id": "33333333-3333-3333-3333-333333333333",
    "name": "My Deployment",
    "flow_id": FLOW_ID,
    "updated": "2026-01-02T03:04:05+02:00",
    "tags": ["a"],
}
FLOW_RUN = {
    "id": "44444444-4444-4444-4444-444444444444",
    "name": "My Run",
    "flow_id": FLOW_ID,
    "deployment_id": DEPLOYMENT["id"],
    "tags": ["a", "b"],
    "parameters": {"p": 5},
}
WORK_POOL = {
    "id": "55555555-5555-5555-5555-555555555555",
    "name": "My Pool",
    "type": "process",
    "default_queue_id": "66666666-6666-6666-6666-666666666666",
}


def template_with(
    *, env: Any = "{{ env }}", default_env: Any = None, **defaults: Any
) -> dict[str, Any]:
    """A template whose variables have these defaults and whose job has this ``env``."""
    template: dict[str, Any] = copy.deepcopy(PLAIN_TEMPLATE)
    template["job_configuration"]["env"] = env
    properties = template["variables"]["properties"]
    properties.update({name: {"default": value} for name, value in defaults.items()})
    if default_env is not None:
        properties["env"] = {"type": "object", "default": default_env}
    return template


@pytest.fixture(scope="module")
def prefect() -> ModuleType:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from prefect.workers import base
    return base


@pytest.fixture
def client(prefect: ModuleType) -> references.PrefectClient:
    return references.PrefectClient(not_found=prefect.ObjectNotFound)


@pytest.fixture
def build(prefect: ModuleType, client: references.PrefectClient) -> Build:
    """Build a configuration here and with Prefect; they must be equal."""

    def build_both(
        template: dict[str, Any], values: dict[str, Any]
    ) -> configuration.BaseJobConfiguration:
        mine = ours(template, values)
        building = prefect.BaseJobConfiguration.from_template_and_values(
            base_job_template=copy.deepcopy(template), values=copy.deepcopy(values), client=client
        )
        assert mine.model_dump() == asyncio.run(building).model_dump()
        return mine

    return build_both


def ours(template: dict[str, Any], values: dict[str, Any]) -> configuration.BaseJobConfiguration:
    return configuration.BaseJobConfiguration.from_template_and_values(
        template, values, references.Reader()
    )


# What makes up the environment: run over deployment over default over hard-coded

DEFAULT_ENV: dict[str, str | None] = {"D": "default", "E": "default"}
NOT_TEMPLATED: dict[str, str | None] = {"A": "{{ $MYENV }}", "B": "{{ nope }}"}

ENV_CASES: Sequence[tuple[dict[str, Any], dict[str, Any], dict[str, str | None]]] = [
    # nothing anywhere
    (template_with(), {}, {}),
    # each source alone
    (template_with(default_env=DEFAULT_ENV), {}, DEFAULT_ENV),
    (template_with(), {"env": {"A": "1"}}, {"A": "1"}),
    (template_with(env={"HARD": "1"}), {}, {"HARD": "1"}),
    # values over defaults, by name; numbers become text
    (
        template_with(default_env=DEFAULT_ENV),
        {"env": {"E": "dep", "F": 1, "G": True, "H": None, "I": 1.5}},
        {"D": "default", "E": "dep", "F": "1", "G": "True", "H": None, "I": "1.5"},
    ),
    # dotted names; the nested form wins
    (
        template_with(default_env=DEFAULT_ENV),
        {"env.FOO": "dot", "env": {"FOO": "nested", "Z": None}},
        {**DEFAULT_ENV, "FOO": "nested", "Z": None},
    ),
    (
        template_with(default_env=DEFAULT_ENV),
        {"env": {"A": "1"}, "env.FOO": "dot"},
        {**DEFAULT_ENV, "A": "1", "FOO": "dot"},
    ),
    (template_with(), {"env.FOO": "dot"}, {"FOO": "dot"}),
    # hard-coded, default and value
    (
        template_with(env={"HARD": "1", "D": "jc", "MISS": "{{ nope }}"}, default_env=DEFAULT_ENV),
        {"env": {"F": "dep", "HARD": "over"}},
        {"HARD": "over", "D": "default", "E": "default", "F": "dep"},
    ),
    # a hard-coded environment takes values also without a default
    (template_with(env={"HARD": "1"}), {"env": {"A": "2"}}, {"HARD": "1", "A": "2"}),
    # an empty value changes nothing
    (template_with(default_env=DEFAULT_ENV), {"env": {}}, DEFAULT_ENV),
    (template_with(default_env=DEFAULT_ENV), {"env": None}, DEFAULT_ENV),
    (template_with(default_env=DEFAULT_ENV), {"env": ""}, DEFAULT_ENV),
    (template_with(env={"HARD": "1"}, default_env={}), {}, {"HARD": "1"}),
    # the pool's own environment may be a placeholder of another variable
    (template_with(env="{{ d }}", d={"X": 1}), {}, {"X": "1"}),
    # references resolve in what the user gave, in defaults and in the hard-coded part
    (
        template_with(
            env={"H": "{{ prefect.blocks.secret.plain }}"},
            default_env={"D": "{{ prefect.variables.w }}"},
        ),
        {"env": {"A": "tok={{ prefect.blocks.secret.dict.token }}"}},
        {"H": "pw", "D": "7", "A": "tok=T"},
    ),
    # values are not templated, unless the pool has an environment that they are merged into
    (template_with(), {"env": {"A": "{{ $MYENV }}", "B": "{{ nope }}"}}, NOT_TEMPLATED),
    (
        template_with(default_env={"D": "1"}),
        {"env": {"A": "{{ $MYENV }}", "B": "{{ nope }}"}},
        {"D": "1", "A": "envval"},
    ),
    (template_with(), {"env": {"A": "{{ prefect.variables.missing }}"}}, {"A": ""}),
    # the whole environment from a block, alone or merged with a default
    (
        template_with(),
        {"env": {"$ref": {"block_document_id": references.SECRET_ID}}},
        {"value": "pw"},
    ),
    (template_with(), {"env": "{{ prefect.variables.v }}"}, {"a": "1"}),
    # a variable inside a block's data is resolved, as variables come after blocks
    (
        template_with(),
        {"env": {"A": "{{ prefect.blocks.json.looks-like-variable }}"}},
        {"A": "7"},
    ),
]


@pytest.fixture(autouse=True)
def environ(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MYENV", "envval")


@pytest.mark.parametrize(("template", "values", "expected"), ENV_CASES)
def test_the_environment_is_merged_as_prefect_merges_it(
    build: Build, template: dict[str, Any], values: dict[str, Any], expected: dict[str, str | None]
) -> None:
    assert build(template, values).env == expected


def test_the_environment_of_the_process_reaches_the_pools_part_of_the_template(
    build: Build,
) -> None:
    built = build(template_with(env={"A": "{{ $MYENV }}", "B": "p/{{ $NOPE_X }}"}), {})
    assert built.env == {"A": "envval", "B": "p/"}


def test_the_environment_to_look_names_up_in_can_be_given() -> None:
    built = configuration.BaseJobConfiguration.from_template_and_values(
        template_with(env={"A": "{{ $MYENV }}"}),
        {},
        references.Reader(),
        environ={"MYENV": "given"},
    )
    assert built.env == {"A": "given"}


# The other fields

FIELD_CASES: Sequence[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    (template_with(), {}, {"command": None, "name": None, "labels": {}}),
    (template_with(command="default"), {}, {"command": "default"}),
    (template_with(command="default"), {"command": "own"}, {"command": "own"}),
    (template_with(command="default"), {"command": None}, {"command": None}),
    (template_with(command="default"), {"command": ""}, {"command": None}),
    (template_with(), {"command": "echo {{ x }}"}, {"command": "echo {{ x }}"}),
    (template_with(name=None), {}, {"name": None}),
    (template_with(labels={"a": "1"}), {"labels": {"b": "2"}}, {"labels": {"b": "2"}}),
    (template_with(labels={"a": "1"}), {"labels.b": "2"}, {"labels": {"b": "2"}}),
    (template_with(), {"labels.a": "1", "labels": {"b": "2"}}, {"labels": {"a": "1", "b": "2"}}),
    (template_with(), {"name": "N-{{ ctx.flow_run.name }}"}, {"name": "N-{{ ctx.flow_run.name }}"}),
    (template_with(), {"name": "{{ prefect.variables.missing }}"}, {"name": ""}),
    (template_with(), {"zzz": 1}, {"name": None}),
]


@pytest.mark.parametrize(("template", "values", "expected"), FIELD_CASES)
def test_fields_are_filled_in_as_prefect_fills_them_in(
    build: Build, template: dict[str, Any], values: dict[str, Any], expected: dict[str, Any]
) -> None:
    built = build(template, values)
    assert {name: getattr(built, name) for name in expected} == expected


def test_dotted_and_nested_names_merge_at_every_depth(build: Build) -> None:
    template = template_with(env={"A": "{{ deep.a.b }}-{{ deep.a.c }}-{{ deep.l.0 }}-{{ deep.x }}"})
    values = {
        "deep.a.b": "dotted",
        "deep.a.c": "dotted",
        "deep.x.y": "lost",
        "deep": {"a": {"c": "nested"}, "x": "nested"},
    }
    assert build(template, values).env == {"A": "dotted-nested--nested"}


def test_a_dotted_name_may_have_brackets(build: Build) -> None:
    built = build(template_with(env={"A": "{{ d.k }}"}), {"d.k[z]": 1, "d.k[y].x": 2})
    assert built.env == {"A": "{'z': 1, 'y': {'x': 2}}"}


def test_a_boolean_schema_among_the_variables_is_no_obstacle() -> None:
    template = template_with()
    template["variables"]["properties"]["anything"] = True  # legal JSON schema; Prefect fails
    assert ours(template, {}).name is None


def test_nothing_given_is_ever_changed() -> None:
    template = template_with(
        env={"HARD": "1"}, default_env={"D": "1"}, labels={"l": "1"}, d={"deep": {"list": [1]}}
    )
    values = {"env": {"A": "1"}, "x.y": {"z": 1}, "x.y.w": 2, "env.B": "2", "x": {"y": {"v": 3}}}
    before = copy.deepcopy((template, values))
    first = ours(template, values)
    first.env["CHANGED"] = "1"
    first.labels["CHANGED"] = "1"
    assert (template, values) == before
    assert "CHANGED" not in ours(template, values).env


# Step 1: deployment and run

MERGE_CASES: Sequence[tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = [
    ({}, {}, {}),
    ({"env": "{{ prefect.variables.v }}"}, {}, {"env": "{{ prefect.variables.v }}"}),
    ({"a": 1, "b": 1}, {"b": 2, "c": 2}, {"a": 1, "b": 2, "c": 2}),
    ({"labels": {"a": "1"}}, {"labels": {"b": "2"}}, {"labels": {"b": "2"}}),
    (
        {"env": {"A": "dep", "B": "dep"}},
        {"env": {"B": "run", "C": "x"}},
        {"env": {"A": "dep", "B": "run", "C": "x"}},
    ),
    ({"env": {"A": "dep"}}, {}, {"env": {"A": "dep"}}),
    ({"env": {"A": "dep"}}, {"env": {"A": None}}, {"env": {"A": None}}),
    ({"env": None}, {"env": {"A": "run"}}, {"env": {"A": "run"}}),
    ({}, {"env": {"A": "run"}}, {"env": {"A": "run"}}),
    # dotted names are names like any other here; the nested form wins afterwards
    (
        {"env": {"A": "dep"}, "env.B": "dep"},
        {"env.A": "run", "env.B": "run"},
        {"env": {"A": "dep"}, "env.B": "run", "env.A": "run"},
    ),
]


@pytest.mark.parametrize(("deployment", "flow_run", "expected"), MERGE_CASES)
def test_job_variables_of_a_run_lie_over_those_of_its_deployment(
    deployment: dict[str, Any], flow_run: dict[str, Any], expected: dict[str, Any]
) -> None:
    before = copy.deepcopy((deployment, flow_run))
    merged = configuration.merge_job_variables(deployment, flow_run)
    assert merged == expected
    merged.setdefault("env", {})
    if isinstance(merged["env"], dict):
        merged["env"]["CHANGED"] = "1"
    assert (deployment, flow_run) == before


def test_neither_deployment_nor_run_needs_to_have_job_variables() -> None:
    assert configuration.merge_job_variables(None, None) == {}


@pytest.mark.parametrize("env", [{}, None])
def test_an_empty_environment_of_the_run_leaves_the_deployments(env: object) -> None:
    # For null Prefect fails with a TypeError.
    merged = configuration.merge_job_variables({"env": {"A": "1"}}, {"env": env})
    assert merged == {"env": {"A": "1"}}


def test_an_environment_that_cannot_be_merged_is_refused_by_name_and_without_its_value() -> None:
    with pytest.raises(errors.ConfigurationError, match="'env' is a str, but has") as caught:
        configuration.merge_job_variables({"env": {"A": "1"}}, {"env": "top-secret"})
    assert "top-secret" not in str(caught.value)
    with pytest.raises(errors.ConfigurationError, match="'env' is a str, but has"):
        ours(template_with(default_env={"A": "1"}), {"env": "{{ prefect.variables.v }}"})


# The whole way, against Prefect

Documents = tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]


def documents(template: dict[str, Any], deployment: Any = None, flow_run: Any = None) -> Documents:
    return (
        {**FLOW_RUN, "job_variables": flow_run or {}},
        {**DEPLOYMENT, "job_variables": deployment or {}},
        FLOW,
        {**WORK_POOL, "base_job_template": template},
    )


def prepared(given: Documents) -> configuration.BaseJobConfiguration:
    flow_run = schemas.FlowRun.model_validate(given[0])
    deployment = schemas.Deployment.model_validate(given[1])
    pool = schemas.WorkPool.model_validate(given[3])
    built = configuration.BaseJobConfiguration.from_template_and_values(
        pool.base_job_template,
        configuration.merge_job_variables(deployment.job_variables, flow_run.job_variables),
        references.Reader(),
    )
    built.prepare_for_flow_run(
        flow_run, deployment, schemas.Flow.model_validate(given[2]), pool, "My Worker"
    )
    return built


def prepared_by_prefect(prefect: ModuleType, given: Documents) -> Any:
    from prefect.client.schemas import objects, responses

    flow_run, deployment, flow, pool = copy.deepcopy(given)

    class Client(references.PrefectClient):
        async def read_flow(self, _: uuid.UUID) -> objects.Flow:
            return objects.Flow.model_validate(flow)

    resolving = prefect.BaseJobConfiguration.resolve_for_flow_run(
        objects.FlowRun.model_validate(flow_run),
        client=Client(prefect.ObjectNotFound),
        work_pool=objects.WorkPool.model_validate(pool),
        worker_name="My Worker",
        deployment=responses.DeploymentResponse.model_validate(deployment),
    )
    return asyncio.run(resolving)


def without_settings(env: dict[str, str]) -> dict[str, str]:
    """Leave out Prefect's settings: Prefect passes on those of its profile files as well."""
    return {
        name: value
        for name, value in env.items()
        if not name.startswith("PREFECT_") or name.startswith("PREFECT__")
    }


WHOLE_CASES: Sequence[Documents] = [
    documents(PLAIN_TEMPLATE),
    documents(
        template_with(env={"HARD": "1", "A": "jc"}, default_env={"D": "1", "A": "default"}),
        {"env": {"A": "dep", "B": "dep"}, "labels": {"mine": "1", "prefect.io/version": "own"}},
        {"env": {"B": "run", "C": "x", "HARD": None}, "command": "run this"},
    ),
    documents(PLAIN_TEMPLATE, {"name": "N-{{ ctx.flow_run.name }}"}),
    documents(PLAIN_TEMPLATE, {"name": "{{ ctx.flow.name }}/{{ctx.flow_run.parameters.p}}"}),
    documents(PLAIN_TEMPLATE, {"name": "{{ ctx.flow_run.id }}-{{ ctx.nope }}"}),
    documents(PLAIN_TEMPLATE, {"name": "{{ ctx.nope }}"}),
    documents(PLAIN_TEMPLATE, {"name": "{{ ctx.flow_run.infrastructure_pid }}"}),
    documents(PLAIN_TEMPLATE, {"name": ""}),
    documents(PLAIN_TEMPLATE, {"command": "{{ ctx.flow_run.name }}"}),
    documents(PLAIN_TEMPLATE, {"env": {"PREFECT__FLOW_NAME": "own"}}),
    documents(PLAIN_TEMPLATE, {"env": {"PREFECT__WORKER_NAME": None}}),
]


@pytest.mark.parametrize("given", WHOLE_CASES)
def test_a_prepared_configuration_equals_prefects(prefect: ModuleType, given: Documents) -> None:
    mine, theirs = prepared(given), prepared_by_prefect(prefect, given)
    assert without_settings(mine.env) == without_settings(theirs.env)  # type: ignore[arg-type]
    assert (mine.name, mine.command, mine.labels) == (theirs.name, theirs.command, theirs.labels)
    assert mine.related_resources() == [each.root for each in theirs._related_resources()]


def test_a_name_that_is_no_text_is_written_as_text() -> None:
    # Prefect leaves the number 5, which no infrastructure takes for a name.
    built = prepared(documents(PLAIN_TEMPLATE, {"name": "{{ ctx.flow_run.parameters.p }}"}))
    assert built.name == "5"


def test_a_prepared_configuration_needs_no_more_than_the_run() -> None:
    built = configuration.BaseJobConfiguration()
    built.prepare_for_flow_run(schemas.FlowRun.model_validate({**FLOW_RUN, "deployment_id": None}))
    assert without_settings(built.env) == {  # type: ignore[arg-type]
        "PREFECT__FLOW_RUN_ID": FLOW_RUN["id"],
        "PREFECT__FLOW_ID": FLOW_ID,
    }
    assert built.labels == {
        "prefect.io/flow-run-id": FLOW_RUN["id"],
        "prefect.io/flow-run-name": "My Run",
        "prefect.io/version": metadata.version("prefect"),
    }
    assert (built.name, built.command) == ("My Run", "prefect flow-run execute")
    assert [each["prefect.resource.role"] for each in built.related_resources()] == [
        "flow-run",
        "tag",
        "tag",
    ]


def test_a_deployment_that_was_never_updated_has_no_label_for_it() -> None:
    built = configuration.BaseJobConfiguration()
    deployment = schemas.Deployment.model_validate({**DEPLOYMENT, "updated": None})
    built.prepare_for_flow_run(schemas.FlowRun.model_validate(FLOW_RUN), deployment)
    assert built.labels["prefect.io/deployment-name"] == "My Deployment"
    assert "prefect.io/deployment-updated" not in built.labels


def test_without_prefect_beside_the_dispatcher_there_is_no_version_label() -> None:
    flow_run = schemas.FlowRun.model_validate(FLOW_RUN)
    labels = attribution.flow_run_labels(flow_run, distribution="not-installed-anywhere")
    assert labels == {
        "prefect.io/flow-run-id": FLOW_RUN["id"],
        "prefect.io/flow-run-name": "My Run",
    }


def test_jobs_get_the_prefect_settings_of_this_process_and_nothing_else() -> None:
    environ = {
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        "PREFECT_API_KEY": "key",
        "PREFECT__FLOW_RUN_ID": "of another run",
        "DISPATCHER_BROKER_URL": "redis://",
        "PATH": "/bin",
    }
    assert configuration.BaseJobConfiguration._base_environment(environ) == {
        "PREFECT_API_URL": "http://127.0.0.1:4200/api",
        "PREFECT_API_KEY": "key",
    }


def test_a_variable_of_the_job_wins_over_the_setting_of_this_process(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "INFO")
    monkeypatch.setenv("PREFECT_RESULTS_PERSIST_BY_DEFAULT", "true")
    env = {"PREFECT_LOGGING_LEVEL": "DEBUG", "PREFECT_RESULTS_PERSIST_BY_DEFAULT": None}
    built = prepared(documents(PLAIN_TEMPLATE, {"env": env}))
    assert built.env["PREFECT_LOGGING_LEVEL"] == "DEBUG"
    assert "PREFECT_RESULTS_PERSIST_BY_DEFAULT" not in built.env
    assert os.environ["PREFECT_LOGGING_LEVEL"] == "INFO"


def test_names_to_keep_out_of_the_job_are_known_before_and_after_preparing() -> None:
    built = configuration.BaseJobConfiguration(env={"A": "1", "NOT_ME": None, "NOR_ME": None})
    assert built.unset_env == {"NOT_ME", "NOR_ME"}
    built.prepare_for_flow_run(schemas.FlowRun.model_validate(FLOW_RUN))
    assert built.unset_env == {"NOT_ME", "NOR_ME"}
    assert None not in built.env.values()


# What is refused


class Sized(configuration.BaseJobConfiguration):
    """A configuration with a field of its own, as an executor defines it."""

    size: int = Field(default=1, json_schema_extra={"template": "{{ sizes.of_job }}"})
    token: pydantic.SecretStr | None = None


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"labels": {"a": 1}}, "labels.a: Input should be a valid string"),
        ({"name": "{{ prefect.variables.w }}"}, "name: Input should be a valid string"),
        ({"name": 5, "command": []}, "command: .*; name: Input should be a valid string"),
        ({"env": ["top-secret"]}, "env: Input should be a valid dictionary"),
    ],
)
def test_an_invalid_field_is_named_with_the_reason(values: dict[str, Any], message: str) -> None:
    with pytest.raises(errors.ConfigurationError, match=message):
        ours(PLAIN_TEMPLATE, values)


def test_what_prefect_refuses_is_refused_here(
    prefect: ModuleType, client: references.PrefectClient
) -> None:
    for values in ({"labels": {"a": 1}}, {"name": "{{ prefect.variables.w }}"}):
        with pytest.raises(pydantic.ValidationError):
            asyncio.run(
                prefect.BaseJobConfiguration.from_template_and_values(
                    base_job_template=PLAIN_TEMPLATE, values=values, client=client
                )
            )


def test_a_refused_secret_is_nowhere_in_the_error_not_even_in_its_cause() -> None:
    values = {"name": {"password": "top-secret"}, "labels": {"token": ["top-secret"]}}
    with pytest.raises(errors.ConfigurationError) as caught:
        ours(PLAIN_TEMPLATE, values)
    assert "top-secret" not in "".join(traceback.format_exception(caught.value))


def test_the_representation_shows_no_values_that_may_be_secret() -> None:
    built = configuration.BaseJobConfiguration(
        name="job", command="run --token top-secret", env={"TOKEN": "top-secret"}
    )
    assert repr(built) == "BaseJobConfiguration(name='job')"
    assert "top-secret" not in str(built)


@pytest.mark.parametrize("part", ["job_configuration", "variables"])
@pytest.mark.parametrize("empty", [True, False])
def test_a_pool_without_a_template_is_told_so(part: str, empty: bool) -> None:
    template = {name: value for name, value in PLAIN_TEMPLATE.items() if name != part}
    if not empty:
        template[part] = []
    with pytest.raises(errors.ConfigurationError, match=f"base job template has no '{part}'"):
        ours(template, {})


def test_variables_without_properties_have_no_defaults() -> None:
    assert ours({**PLAIN_TEMPLATE, "variables": {}}, {"name": "n"}).name == "n"


def test_contradicting_dotted_names_are_refused() -> None:
    with pytest.raises(errors.ConfigurationError, match=r"'a.b.c' contradicts .* gives 'b'"):
        ours(PLAIN_TEMPLATE, {"a.b": 1, "a.b.c": 2})


def test_a_missing_block_ends_the_configuration_with_its_name() -> None:
    with pytest.raises(errors.ConfigurationError, match="block 'nope' of type 'secret'"):
        ours(PLAIN_TEMPLATE, {"env": {"A": "{{ prefect.blocks.secret.nope }}"}})


# Templates and schemas of subclasses


def test_a_field_may_bring_its_own_template() -> None:
    assert Sized.json_template() == {
        "command": "{{ command }}",
        "env": "{{ env }}",
        "labels": "{{ labels }}",
        "name": "{{ name }}",
        "size": "{{ sizes.of_job }}",
        "token": "{{ token }}",
    }


def test_a_subclass_is_filled_in_and_is_what_comes_out() -> None:
    template = {"job_configuration": Sized.json_template(), "variables": {"properties": {}}}
    built = Sized.from_template_and_values(
        template, {"sizes.of_job": 3, "token": "t"}, references.Reader()
    )
    assert isinstance(built, Sized)
    assert built.size == 3


def test_the_schema_for_a_pool_has_no_templates_and_its_definitions_where_pools_have_them() -> None:
    class Part(pydantic.BaseModel, extra="forbid"):
        a: int = 1

    class Variables(configuration.BaseVariables):
        part: Part = Field(default_factory=Part, json_schema_extra={"template": "{{ x }}"})

    schema = configuration.variables_schema(Variables)
    assert schema["properties"]["part"] == {"$ref": "#/definitions/Part"}
    assert schema["definitions"]["Part"] == {
        "properties": {"a": {"default": 1, "title": "A", "type": "integer"}},
        "title": "Part",
        "type": "object",
    }
    assert set(schema) == {"definitions", "properties", "type"}
