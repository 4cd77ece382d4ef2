"""A run's job configuration: what its work pool's template and its job variables add up to.

The order in which pool, deployment and run are merged is that of Prefect 3.8. Everything is
synchronous, and nothing given to these functions is ever changed: one template object serves
all runs of a pool.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

import pydantic
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, field_validator

from executors import attribution, errors, exit_reports, templates

if TYPE_CHECKING:
    from dispatcher.prefect_api import schemas

SETTINGS_PREFIX = "PREFECT_"
INTERNAL_PREFIX = "PREFECT__"
DEFINITIONS_REF = "#/definitions/{model}"


class BaseVariables(BaseModel):
    """The job variables that a work pool's template offers for every kind of infrastructure."""

    name: str | None = Field(
        default=None, description="The name of the job; the flow run's name if left empty."
    )
    env: dict[str, str | None] = Field(
        default_factory=dict,
        title="Environment Variables",
        description="Variables to set in the job; null keeps a variable out of it.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels that the job gets besides the usual ones."
    )
    command: str | None = Field(
        default=None, description="The command of the job; leave it empty to run the flow."
    )


class BaseJobConfiguration(BaseModel):
    """What an executor needs to know to start one run's job.

    A subclass adds fields. A field's template is ``{{ <its name> }}`` unless its
    ``json_schema_extra`` has a ``template`` of its own. The representation shows no value that
    may hold a secret.
    """

    model_config = ConfigDict(hide_input_in_errors=True)

    command: str | None = Field(
        default=None, description="The command of the job; leave it empty to run the flow."
    )
    env: dict[str, str | None] = Field(
        default_factory=dict,
        title="Environment Variables",
        description="Variables to set in the job; null keeps a variable out of it.",
    )
    labels: dict[str, str] = Field(
        default_factory=dict, description="Labels that the job gets besides the usual ones."
    )
    name: str | None = Field(
        default=None,
        description=(
            "The name of the job; the flow run's name if left empty. {{ ctx.flow_run.* }} and"
            " {{ ctx.flow.* }} are filled in for each run."
        ),
    )

    _related_objects: dict[str, Any] = PrivateAttr(default_factory=dict)
    _unset_env: frozenset[str] = PrivateAttr(default=frozenset())
    _reports_exit_code: bool = PrivateAttr(default=False)

    def __repr_args__(self) -> Iterable[tuple[str | None, Any]]:
        return [("name", self.name)]

    @field_validator("command")
    @classmethod
    def _empty_means_default(cls, value: str | None) -> str | None:
        return value or None

    @field_validator("env", mode="before")
    @classmethod
    def _values_as_text(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {name: None if item is None else str(item) for name, item in value.items()}

    @classmethod
    def from_template_and_values(
        cls,
        base_job_template: Mapping[str, Any],
        values: Mapping[str, Any],
        reader: templates.ReferenceReader,
        *,
        environ: Mapping[str, str] | None = None,
    ) -> Self:
        """Build the configuration from a pool's template and a run's merged job variables.

        ``environ`` is where ``{{ $NAME }}`` is looked up, by default this process' environment.

        Raises :class:`~executors.errors.ConfigurationError` if the template or a variable is
        unusable, or a block does not exist. What ``reader`` raises passes through.
        """
        template, variables = _merge_template(base_job_template, values)
        populated = templates.apply_values(template, variables, environ=environ)
        populated = templates.resolve_block_references(populated, reader)
        populated = templates.resolve_variables(populated, reader)
        try:
            made = cls.model_validate(populated)
        except pydantic.ValidationError as error:
            # Without the cause: it holds the refused values, and they may be secrets.
            raise errors.ConfigurationError(_describe(error)) from None
        made._reports_exit_code = exit_reports.parse(values.get(exit_reports.REPORT_VARIABLE))
        made.take_variables(values)
        return made

    @property
    def reports_exit_code(self) -> bool:
        """Whether the job's exit code tells how its run ended, as there is no engine to do so."""
        return self._reports_exit_code

    def take_variables(self, values: Mapping[str, Any]) -> None:
        """Take job variables that are no part of a template; here there are none.

        So they work in every pool. Raises :class:`~executors.errors.ConfigurationError`.
        """

    @classmethod
    def json_template(cls) -> dict[str, Any]:
        """Return the ``job_configuration`` part of a default template: a placeholder per field."""
        properties = cls.model_json_schema()["properties"]
        return {
            name: attributes.get("template") or f"{{{{ {name} }}}}"
            for name, attributes in properties.items()
        }

    @property
    def unset_env(self) -> frozenset[str]:
        """Names that the job's environment must not have, not even inherited ones."""
        return self._unset_env | {name for name, value in self.env.items() if value is None}

    def prepare_for_flow_run(
        self,
        flow_run: schemas.FlowRun,
        deployment: schemas.Deployment | None = None,
        flow: schemas.Flow | None = None,
        work_pool: schemas.WorkPool | None = None,
        worker_name: str | None = None,
    ) -> None:
        """Add what depends on the run: environment, labels, name and the default command.

        What the configuration already has wins over what is added. Variables whose value is
        ``None`` leave ``env``; :attr:`unset_env` still names them.
        """
        self._related_objects = {"deployment": deployment, "flow": flow, "flow-run": flow_run}
        env = {
            **self._base_environment(),
            **self._base_flow_run_environment(flow_run),
            **attribution.attribution_environment(flow_run, deployment, flow, worker_name),
            **self.env,
        }
        self._unset_env = self.unset_env
        self.env = {name: value for name, value in env.items() if value is not None}
        self.labels = {
            **attribution.flow_run_labels(flow_run),
            **attribution.placement_labels(work_pool, worker_name),
            **attribution.flow_labels(flow),
            **attribution.deployment_labels(deployment),
            **self.labels,
        }
        self.name = _render_name(self.name, flow_run, flow) or flow_run.name
        self.command = self.command or self._base_flow_run_command()

    def related_resources(self) -> list[dict[str, str]]:
        """Return deployment, flow, flow run and their tags in the form that events relate to."""
        present = {kind: item for kind, item in self._related_objects.items() if item is not None}
        tags = {tag for item in present.values() for tag in item.tags}
        return [
            *(
                {
                    "prefect.resource.id": f"prefect.{kind}.{item.id}",
                    "prefect.resource.role": kind,
                    "prefect.resource.name": item.name,
                }
                for kind, item in present.items()
            ),
            *(
                {"prefect.resource.id": f"prefect.tag.{tag}", "prefect.resource.role": "tag"}
                for tag in sorted(tags)
            ),
        ]

    def _base_flow_run_command(self) -> str:
        """Return the command of a job that has none of its own."""
        return "prefect flow-run execute"

    @staticmethod
    def _base_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
        """Return the Prefect settings in this process' environment, which every job gets.

        ``PREFECT__*`` is not among them: that is how Prefect marks a process as one run's own.
        """
        surroundings = os.environ if environ is None else environ
        return {
            name: value
            for name, value in surroundings.items()
            if name.startswith(SETTINGS_PREFIX) and not name.startswith(INTERNAL_PREFIX)
        }

    @staticmethod
    def _base_flow_run_environment(flow_run: schemas.FlowRun) -> dict[str, str]:
        """Return what tells the job which run it executes."""
        return {"PREFECT__FLOW_RUN_ID": str(flow_run.id)}


def merge_job_variables(
    deployment_variables: Mapping[str, Any] | None, flow_run_variables: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Lay a run's job variables over its deployment's.

    A variable is replaced as a whole. Only ``env`` is merged name by name, if the deployment's
    is a mapping; dotted names (``env.FOO``) are variables of their own here.

    Raises :class:`~executors.errors.ConfigurationError` if the run's ``env`` cannot be merged.
    """
    merged = copy.deepcopy(dict(deployment_variables or {}))
    own = copy.deepcopy(dict(flow_run_variables or {}))
    if isinstance(merged.get("env"), dict):
        own["env"] = _env_over(merged["env"], own.get("env"))
    return merged | own


def variables_schema(model: type[BaseModel]) -> dict[str, Any]:
    """Return a model's JSON schema as the ``variables`` part of a template carries it."""
    schema = model.model_json_schema(ref_template=DEFINITIONS_REF)
    if "$defs" in schema:
        schema["definitions"] = schema.pop("$defs")
    for part in (schema, *schema.get("definitions", {}).values()):
        part.pop("additionalProperties", None)
    for attributes in schema["properties"].values():
        attributes.pop("template", None)
    # Title and description are the class' name and docstring, which are not for a pool's users.
    schema.pop("title", None)
    schema.pop("description", None)
    return schema


def _merge_template(
    base_job_template: Mapping[str, Any], values: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the job configuration to fill in and the values to fill in, both merged."""
    template, defaults = _split_template(base_job_template)
    variables = defaults | _nested(values)
    if defaults.get("env"):
        template["env"] = _env_over(template.get("env"), defaults["env"])
    if isinstance(template.get("env"), dict):
        template["env"] = _env_over(template["env"], variables.get("env"))
    return template, variables


def _split_template(base_job_template: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return copies of the job configuration and of the variables' defaults."""
    for part in ("job_configuration", "variables"):
        if not isinstance(base_job_template.get(part), dict):
            raise errors.ConfigurationError(
                f"the work pool's base job template has no {part!r}; restore it, for example"
                " from the default template of the pool's type"
            )
    properties = base_job_template["variables"].get("properties") or {}
    defaults = {
        name: attributes["default"]
        for name, attributes in properties.items()
        if isinstance(attributes, dict) and attributes.get("default") is not None
    }
    return copy.deepcopy(base_job_template["job_configuration"]), copy.deepcopy(defaults)


def _env_over(lower: Any, upper: Any) -> Any:
    """Merge two environments; the upper one replaces a lower one that is only a placeholder."""
    if not isinstance(lower, dict):
        return upper
    if not upper or isinstance(upper, dict):
        return lower | (upper or {})
    raise errors.ConfigurationError(
        f"job variable 'env' is a {type(upper).__name__}, but has to be merged with other"
        " environment variables; make it a mapping of names to values"
    )


def _nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Expand dotted names (``env.FOO``) to mappings; what is written as a mapping wins."""
    values = copy.deepcopy(dict(values))
    nested: dict[str, Any] = {}
    for name in values:
        if "." in name:
            _set_path(nested, name, values[name])
    for name, value in values.items():
        if "." not in name:
            nested[name] = _deep_merge(nested.get(name), value)
    return nested


def _set_path(target: dict[str, Any], path: str, value: Any) -> None:
    *parents, last = path.replace("[", ".").replace("]", "").split(".")
    for part in parents:
        target = target.setdefault(part, {})
        if not isinstance(target, dict):
            raise errors.ConfigurationError(
                f"job variable {path!r} contradicts another one that gives {part!r} a single value"
            )
    target[last] = value


def _deep_merge(lower: Any, upper: Any) -> Any:
    if not isinstance(lower, dict) or not isinstance(upper, dict):
        return upper
    merged = {name: _deep_merge(lower.get(name), value) for name, value in upper.items()}
    return lower | merged


def _describe(error: pydantic.ValidationError) -> str:
    """Name the fields and the reasons, without the values."""
    problems = (
        f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_context=False, include_input=False)
    )
    return "the job configuration is not valid: " + "; ".join(problems)


def _render_name(
    name: str | None, flow_run: schemas.FlowRun, flow: schemas.Flow | None
) -> str | None:
    """Fill in ``{{ ctx.flow.* }}`` and ``{{ ctx.flow_run.* }}``."""
    context = {
        "flow": flow.model_dump(mode="json") if flow else {},
        "flow_run": flow_run.model_dump(mode="json"),
    }
    rendered = templates.apply_values(name, {"ctx": context})
    if rendered is templates.MISSING:
        return name
    return None if rendered is None else str(rendered)
