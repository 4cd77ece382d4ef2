"""Which settings a fork server was started with: jobs with others need one of their own.

Prefect and Python read these when they are imported, which a warm job never does itself.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

# Of everything else in its environment, a job sees its own value.
_PREFIXES = (
    "PREFECT_",
    "PYTHON",
    "LC_",
    "LD_",
    "GLIBC_",
    "MALLOC_",
    "MKL_",
    "OMP_",
    "OPENBLAS_",
    "OPENSSL_",
)
_NAMES = frozenset({"HOME", "LANG", "LANGUAGE", "SSL_CERT_DIR", "SSL_CERT_FILE", "VIRTUAL_ENV"})
_RUNS_OWN = "PREFECT__"

_HOME = "~/.prefect"
_PROFILES = "profiles.toml"
_SETTINGS_FILES = (".env", "prefect.toml", "pyproject.toml")
_CHARACTERS = 16


def is_setting(name: str) -> bool:
    """Whether a variable counts at import."""
    return name in _NAMES or (name.startswith(_PREFIXES) and not name.startswith(_RUNS_OWN))


def settings_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that count at import."""
    return {name: value for name, value in environment.items() if is_setting(name)}


def of(environment: Mapping[str, str], python: str) -> str:
    """A short name of an interpreter, and the settings in an environment and Prefect's profiles."""
    parts = [python, sorted(settings_of(environment).items()), _stamp(_profiles(environment))]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:_CHARACTERS]


def has_settings_file(directory: Path) -> bool:
    """Whether Prefect reads settings from a file in the directory that it is started in."""
    return any((directory / name).exists() for name in _SETTINGS_FILES)


def has_relative_path(environment: Mapping[str, str]) -> bool:
    """Whether modules are looked for relative to the directory that Python is started in."""
    path = environment.get("PYTHONPATH")
    return bool(path) and not all(Path(each).is_absolute() for each in str(path).split(os.pathsep))


def _profiles(environment: Mapping[str, str]) -> Path:
    if path := environment.get("PREFECT_PROFILES_PATH"):
        return _expand(path, environment)
    return _expand(environment.get("PREFECT_HOME") or _HOME, environment) / _PROFILES


def _expand(path: str, environment: Mapping[str, str]) -> Path:
    if path.startswith("~/") and (home := environment.get("HOME")):
        return Path(home) / path[2:]
    return Path(path).expanduser()


def _stamp(path: Path) -> list[int]:
    try:
        found = path.stat()
    except OSError:
        return []
    return [found.st_mtime_ns, found.st_size, found.st_ino]
