"""The process executor: flow runs as processes of the worker's host."""

from __future__ import annotations

from executors.process.configuration import ProcessJobConfiguration, ProcessVariables
from executors.process.executor import ProcessExecutor

__all__ = ["ProcessExecutor", "ProcessJobConfiguration", "ProcessVariables"]
