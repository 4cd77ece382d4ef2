"""The files from which Prefect takes settings that its environment does not have.

They are read as Prefect does, in the same order, but without importing it: ``.env``,
``prefect.toml``, ``pyproject.toml``, and the active profile of ``profiles.toml``, which is what
``prefect cloud login``, ``prefect config set`` and ``prefect profile use`` write.
"""

from __future__ import annotations

import json
import logging
import tomllib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dotenv

from dispatcher import errors

PREFIX = "PREFECT_"
DOTENV, PREFECT_TOML, PYPROJECT = ".env", "prefect.toml", "pyproject.toml"
PROFILES = "profiles.toml"
HOME = "~/.prefect"
# The one table of a TOML file that is a setting, rather than a part of the names of settings.
MAPPINGS = frozenset({"PREFECT_CLIENT_CUSTOM_HEADERS"})

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Found:
    """A setting as an environment variable would have it, and the file that it is from."""

    text: str = field(repr=False)
    source: str


def read(environ: Mapping[str, str], directory: Path) -> dict[str, Found]:
    """Read the settings that a process in ``directory`` has besides its environment's.

    Raises:
        SettingsError: a file is no TOML.
    """
    files = _Files(environ, directory)
    own = {name.upper() for name in environ}
    found: dict[str, Found] = {}
    for source, values in (
        (DOTENV, files.dotenv),
        (PREFECT_TOML, files.prefect),
        (PYPROJECT, files.pyproject),
        files.profile(),
    ):
        for name, text in values.items():
            if name not in own:
                found.setdefault(name, Found(text, source))
    return found


class _Files:
    def __init__(self, environ: Mapping[str, str], directory: Path) -> None:
        self._environ = environ
        self.dotenv = _dotenv(directory / DOTENV)
        self.prefect = dict(_flat(_toml(directory / PREFECT_TOML)))
        tools = _toml(directory / PYPROJECT).get("tool", {})
        self.pyproject = dict(_flat(tools.get("prefect", {})))

    def profile(self) -> tuple[str, dict[str, str]]:
        """The active profile and its settings; none if there is no such profile."""
        path = self._profiles()
        try:
            known = _toml(path)
        except errors.SettingsError as error:
            # Prefect does without it as well.
            logger.warning("Prefect's profiles are left out of account: %s", error)
            return str(path), {}
        name = self._environ.get("PREFECT_PROFILE") or known.get("active")
        profiles = known.get("profiles", {})
        if self._environ.get("PREFECT_PROFILE") and profiles and name not in profiles:
            logger.warning(
                "PREFECT_PROFILE names %r, which is none of the profiles of %s: %s",
                name,
                path,
                ", ".join(sorted(profiles)),
            )
        values = profiles.get(name, {})
        settings = {key.upper(): _text(value) for key, value in values.items()}
        return f"profile {name!r} of {path}", settings

    def _profiles(self) -> Path:
        name = "PREFECT_PROFILES_PATH"
        for values in (self._environ, self.dotenv, self.prefect, self.pyproject):
            if path := values.get(name):
                return Path(path)
        home = self._environ.get("PREFECT_HOME")
        return Path(home) / PROFILES if home else Path(HOME).expanduser() / PROFILES


def _dotenv(path: Path) -> dict[str, str]:
    if not path.is_file():
        return {}
    return {
        name.upper(): text
        for name, text in dotenv.dotenv_values(path).items()
        if name.upper().startswith(PREFIX) and text is not None
    }


def _toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise errors.SettingsError(f"{path} cannot be read: {error}") from None


def _flat(table: Mapping[str, Any], prefix: str = PREFIX) -> Iterator[tuple[str, str]]:
    for key, value in table.items():
        name = f"{prefix}{key.upper()}"
        if isinstance(value, dict) and name not in MAPPINGS:
            yield from _flat(value, f"{name}_")
        else:
            yield name, _text(value)


_FORMS: tuple[tuple[type, Callable[[Any], str]], ...] = (
    (dict, json.dumps),
    (list, lambda items: ",".join(sorted(map(str, items)))),
)


def _text(value: Any) -> str:
    """A value as Prefect writes it into an environment."""
    return next((form(value) for kind, form in _FORMS if isinstance(value, kind)), str(value))
