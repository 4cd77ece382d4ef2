"""The Python that executes a flow run: the worker's own, or that of the flow's environment."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from executors import errors

# The worker's own setting and the job variable that wins over it.
PYTHON_SETTING = "DISPATCHER_PYTHON"
PYTHON_VARIABLE = "python"

# What the fork server's code is written for, and what it knows to prepare.
OLDEST_PYTHON = (3, 10)
OLDEST_PREFECT = (3, 6)

# A cold one on a busy machine takes a second.
ANSWER_SECONDS = 30.0

_QUESTION = """
import importlib.metadata as metadata, importlib.util as util, json, sys, sysconfig
package = sys.argv[1].partition(".")[0]
try:
    release = metadata.version(package)
except metadata.PackageNotFoundError:
    release = ""
print(json.dumps({
    "python": sys.version_info[:2],
    "has_engine": util.find_spec(package) is not None,
    "release": release,
    "packages": [sysconfig.get_path(name) for name in ("purelib", "platlib")],
}))
"""
# What of an environment changes the answer.
_COUNTS = ("PYTHONPATH", "PYTHONHOME")


@dataclass(frozen=True)
class Interpreter:
    """What a Python says of itself, and where its packages are.

    ``release`` is that of the engine's package; empty if it was not installed as one.
    """

    python: tuple[int, int]
    release: str
    packages: tuple[str, ...]

    @property
    def can_be_warm(self) -> bool:
        """Whether a fork server works in it."""
        numbers = tuple(int(part) for part in self.release.split(".")[:2] if part.isdecimal())
        return self.python >= OLDEST_PYTHON and (not numbers or numbers >= OLDEST_PREFECT)


def path_of(named: str | None) -> str:
    """The interpreter that is named by its path or that of a virtual environment."""
    if not named:
        return sys.executable
    path = Path(named).expanduser()
    return str(path / "bin" / "python" if path.is_dir() else path)


def activated(environment: Mapping[str, str], python: str) -> dict[str, str]:
    """The environment with the programs of the interpreter's virtual environment first."""
    root = Path(python).parent.parent
    if python == sys.executable or not (root / "pyvenv.cfg").is_file():
        return dict(environment)
    path = environment.get("PATH", os.defpath)
    programs = str(root / "bin")
    return {**environment, "VIRTUAL_ENV": str(root), "PATH": f"{programs}{os.pathsep}{path}"}


def examine(
    python: str,
    engine: str,
    environment: Mapping[str, str],
    *,
    timeout_seconds: float = ANSWER_SECONDS,
) -> Interpreter:
    """Ask an interpreter of another environment what it is; once, if it can execute flow runs.

    Raises LaunchError: it is not there, cannot be started, or lacks the engine.
    """
    relevant = tuple((name, environment[name]) for name in _COUNTS if name in environment)
    return _examine(python, engine, relevant, timeout_seconds)


@functools.lru_cache(maxsize=64)
def _examine(
    python: str, engine: str, relevant: tuple[tuple[str, str], ...], timeout_seconds: float
) -> Interpreter:
    check(python)
    # In front of the environment that it would have: nothing in it may be needed to start.
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    try:
        done = subprocess.run(
            [python, "-c", _QUESTION, engine],
            cwd="/",
            env={**kept, **dict(relevant)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_seconds,
            check=True,
        )
        told = json.loads(done.stdout)
        found = Interpreter(tuple(told["python"]), told["release"], tuple(told["packages"]))
    except subprocess.TimeoutExpired:
        raise errors.LaunchError(
            f"The interpreter {python!r} does not answer within {timeout_seconds:.0f} s."
        ) from None
    except (OSError, subprocess.CalledProcessError, ValueError, KeyError, TypeError) as error:
        raise errors.LaunchError(
            f"{python!r} is no Python that can be started on this host: {_reason(error)}"
        ) from None
    if not told["has_engine"]:
        package = engine.partition(".")[0]
        raise errors.LaunchError(
            f"The interpreter {python!r} has no package {package!r}: install it there, or name "
            f"another environment in the job variable {PYTHON_VARIABLE!r}."
        )
    return found


def check(python: str) -> None:
    """Raise LaunchError unless this is a program on this host."""
    if not Path(python).is_file():
        raise errors.LaunchError(f"The interpreter {python!r} does not exist on this host.")
    if not os.access(python, os.X_OK):
        raise errors.LaunchError(f"The interpreter {python!r} is not executable.")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError):
        return f"{error.strerror}."
    if isinstance(error, subprocess.CalledProcessError):
        said = error.stderr.decode(errors="replace").strip().splitlines()
        return f"{said[-1][:200]}" if said else f"it exits with {error.returncode}."
    return "it answers something else."
