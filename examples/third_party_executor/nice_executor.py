"""Work pools of type ``nice``: flow runs as processes that leave the CPU to others.

An executor of one's own: what the process executor does, with one more job variable.
"""

from __future__ import annotations

from typing import Any

from pydantic import Field

from executors import process


class NiceVariables(process.ProcessVariables):
    """What a deployment or a run may set."""

    niceness: int = Field(
        default=10,
        ge=0,
        le=19,
        description="How readily the job leaves the CPU to others: 0 not at all, 19 always.",
    )


class NiceJobConfiguration(process.ProcessJobConfiguration):
    """What a job is started with; each field has the variable of its name as its template."""

    niceness: int = Field(default=10, ge=0, le=19)

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Put the command, which is complete by then, under ``nice``."""
        super().prepare_for_flow_run(*args, **kwargs)
        self.command = f"nice -n {self.niceness} {self.command}"


class NiceExecutor(process.ProcessExecutor):
    """Starts, watches and stops jobs as the process executor does."""

    type = "nice"
    job_configuration = NiceJobConfiguration
    job_configuration_variables = NiceVariables

    _description = "Runs each flow run as a process of low priority on the worker's host."
    _documentation_url = "https://example.org/dispatcher-nice-executor"
