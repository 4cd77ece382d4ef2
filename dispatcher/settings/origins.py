"""What each setting is, where that is said, and how it may be shown."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any
from urllib import parse

from pydantic import SecretStr
from pydantic.fields import FieldInfo

from dispatcher.settings import model, prefect_files

HIDDEN = "********"
ENVIRONMENT, DEFAULT = "environment", "default"


@dataclass(frozen=True)
class Origin:
    """A setting, its value without secrets, and where it is from."""

    variable: str
    value: str
    source: str


def list_all(
    options: model.Settings,
    given: Collection[str],
    found: Mapping[str, prefect_files.Found],
) -> list[Origin]:
    """List every setting; ``given`` are the variables that the environment itself has."""
    listed = []
    upper = {name.upper() for name in given}
    for name, field in model.Settings.model_fields.items():
        variable = variable_of(name, field)
        source = DEFAULT
        if variable in upper:
            source = ENVIRONMENT
        elif variable in found:
            source = found[variable].source
        listed.append(Origin(variable, shown(name, getattr(options, name)), source))
    return listed


def variable_of(name: str, field: FieldInfo) -> str:
    """The environment variable of a setting."""
    own = field.validation_alias is None
    return f"{model.ENV_PREFIX if own else ''}{name.upper()}"


def shown(name: str, value: Any) -> str:
    """A value as it may be shown to whoever looks over a shoulder."""
    if value is None:
        return ""
    text = value.get_secret_value() if isinstance(value, SecretStr) else value
    if name.endswith("_url"):
        return _without_secrets(str(text))
    if isinstance(value, SecretStr):
        return HIDDEN
    if isinstance(value, tuple):
        return ",".join(value)
    if isinstance(value, dict):
        return ", ".join(f"{key}: {HIDDEN}" for key in value)
    return str(value)


def _without_secrets(url: str) -> str:
    parts = parse.urlsplit(url)
    credentials, at, hosts = parts.netloc.rpartition("@")
    user = credentials.partition(":")[0]
    query = [
        f"{key}={HIDDEN if 'password' in key else value}"
        for key, value in parse.parse_qsl(parts.query, keep_blank_values=True)
    ]
    netloc = f"{user}:{HIDDEN}@{hosts}" if at else hosts
    return parts._replace(netloc=netloc, query="&".join(query)).geturl()
