"""Virtual environments with one release of Prefect each, and nothing of the dispatcher."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

OLDEST, NEWEST = "3.6.29", "3.9.1"
# Its server cannot be started with what came later.
BESIDES = {OLDEST: ("fastapi<0.116",)}


def missing() -> str | None:
    """Say what is not installed; None if nothing is."""
    return None if _uv() else "uv is not installed"


def make(directory: Path, prefect: str) -> Path:
    """Make an environment, or use the one that is there already; return its path."""
    path = directory / f"prefect-{prefect}"
    if not (path / "made").exists():
        make_with(path, f"prefect=={prefect}", *BESIDES.get(prefect, ()))
        (path / "made").touch()
    return path


def make_with(path: Path, *requirements: str, python: str | Path = sys.executable) -> Path:
    """Make an environment of a Python with these packages; return its interpreter."""
    uv, made = _uv(), path / "bin" / "python"
    assert uv is not None
    subprocess.run([uv, "venv", "--quiet", "--python", python, path], check=True)
    install = [uv, "pip", "install", "--quiet", "--compile-bytecode", "--python", str(made)]
    subprocess.run([*install, *requirements], check=True)
    return made


def _uv() -> str | None:
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if os.access(beside, os.X_OK) else shutil.which("uv")
