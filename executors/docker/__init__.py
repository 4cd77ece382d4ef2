"""The docker executor: flow runs as containers of a Docker engine."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("docker") is None:
    raise ModuleNotFoundError(
        "work pools of type 'docker' need: pip install 'celery-flow-dispatcher[docker]'"
    )

from executors.docker.configuration import DockerJobConfiguration
from executors.docker.executor import DockerExecutor

__all__ = ["DockerExecutor", "DockerJobConfiguration"]
