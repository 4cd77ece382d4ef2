"""Reading the settings, and saying in one line what is wrong with them."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from dispatcher import errors
from dispatcher.settings import misspellings, model, prefect_files

# What to say where Pydantic's own words would not tell a user what to do.
_HINTS = {
    "DISPATCHER_WORK_POOLS": "name the work pools to serve, comma-separated",
    "PREFECT_API_URL": (
        "give the API's address, such as http://127.0.0.1:4200/api, or log in to Prefect Cloud"
    ),
}

logger = logging.getLogger(__name__)


def load(directory: Path = Path()) -> model.Settings:
    """Read the settings from the environment, and from the files in which Prefect keeps its own.

    ``directory`` is where Prefect looks for those files of a project. What they have is in this
    process' environment afterwards, and so in that of every run, as a worker of Prefect's hands
    its settings on.

    Raises:
        errors.SettingsError: one line that names every variable that is missing or wrong.
    """
    found = prefect_files.read(os.environ, directory)
    os.environ.update({name: each.text for name, each in found.items()})
    unknown = misspellings.find(os.environ)
    try:
        loaded = model.Settings()
    except ValidationError as error:
        # Not "from error": Pydantic's text repeats the rejected values, which may be secrets.
        raise errors.SettingsError(_explain(error, unknown)) from None
    for sentence in unknown:
        logger.warning("%s", sentence)
    return loaded


def _explain(error: ValidationError, unknown: Iterable[str]) -> str:
    return "; ".join([*(_explain_one(dict(problem)) for problem in error.errors()), *unknown])


def _explain_one(problem: dict[str, Any]) -> str:
    variable = _variable(str(problem["loc"][0]))
    hint = f": {_HINTS[variable]}" if variable in _HINTS else ""
    if problem["type"] in {"missing", "too_short"}:
        return f"{variable} is not set{hint}"
    message = str(problem["msg"]).removeprefix("Value error, ")
    return f"{variable} is wrong: {message}{hint}"


def _variable(location: str) -> str:
    if location.startswith("PREFECT_"):
        return location
    field = location.lower()
    prefix = "" if field.startswith("prefect_") else model.ENV_PREFIX
    return f"{prefix}{field.upper()}"
