"""On what something was measured."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

import psutil

import dispatcher

PACKAGES = ("prefect", "celery", "redis", "httpx", "pydantic", "uvicorn", "asyncpg", "pandas")
GIB = 1024**3


def machine() -> dict[str, str | int | float]:
    """Processor, memory and operating system."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(psutil.virtual_memory().total / GIB, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Of Python, the dispatcher and what both sides are built on."""
    found = {"python": platform.python_version(), "dispatcher": dispatcher.__version__}
    return found | {name: _version(name) for name in PACKAGES}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        name, _, value = line.partition(":")
        if name.strip() == "model name":
            return value.strip()
    return platform.machine()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"
