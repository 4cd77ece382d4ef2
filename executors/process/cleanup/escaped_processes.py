"""Killing a job that another process started, known by its pid alone.

A pid may have been given to somebody else long ago, so nothing is touched that does not carry the
environment of a flow run, and of the right one where that is known.
"""

from __future__ import annotations

import signal
import time

import psutil

from executors import errors
from executors.process import launch as launching
from executors.process.cleanup import job_marks, process_tree
from executors.process.engine_control import protocol

FLOW_RUN_ID_VARIABLE = job_marks.FLOW_RUN_ID_VARIABLE
POLL_SECONDS = 0.1


def kill(pid: int, flow_run_id: str | None, grace_seconds: float) -> None:
    """Kill the job whose first process has or had this pid; return when nothing is left of it.

    Prefect's engine is killed at once, since without its control connection it would report a
    crash. Any other command has ``grace_seconds``, if any, to heed SIGTERM. Raises
    InfrastructureNotFound if there is no such job, ExecutorError if it survives SIGKILL.
    """
    members = find_job(pid, flow_run_id)
    if not members:
        raise errors.InfrastructureNotFound(
            f"No process {pid} of this flow run exists on this host (any more)."
        )
    family = process_tree.Family(sibling_of(members))
    family.remember(members)
    if grace_seconds > 0 and not any(is_engine(member) for member in members):
        process_tree.send(members, signal.SIGTERM)
        wait_for_end(family, grace_seconds)
    if left := family.kill():
        pids = ", ".join(str(process.pid) for process in left)
        raise errors.ExecutorError(f"Processes {pids} did not end after SIGKILL.")


def find_job(pid: int, flow_run_id: str | None) -> list[psutil.Process]:
    """The process, what is left of its session, and what of its flow run has left the session.

    The last may be all that there is: a job that was killed with its worker has ended nothing.
    """
    in_session = process_tree.in_session(pid)

    def is_of_job(process: psutil.Process) -> bool:
        environment = process_tree.environment(process)
        if process.pid == pid or in_session(process):
            return belongs(environment, flow_run_id)
        return was_launched_for(environment, flow_run_id)

    return process_tree.find(is_of_job)


def was_launched_for(environment: dict[str, str], flow_run_id: str | None) -> bool:
    """Whether an environment is that of a job which a dispatcher started for this very run."""
    return (
        flow_run_id is not None
        and launching.JOB_ID_VARIABLE in environment
        and same_id(environment.get(FLOW_RUN_ID_VARIABLE, ""), flow_run_id)
    )


def belongs(environment: dict[str, str], flow_run_id: str | None) -> bool:
    """Whether an environment is that of a flow run's job, and of this run if it says so."""
    own_id = environment.get(FLOW_RUN_ID_VARIABLE)
    if own_id is None or flow_run_id is None:
        return own_id is not None or launching.JOB_ID_VARIABLE in environment
    return same_id(own_id, flow_run_id)


def same_id(one: str, other: str) -> bool:
    """Whether two ids are equal, with or without hyphens."""
    return one.replace("-", "").lower() == other.replace("-", "").lower()


def sibling_of(members: list[psutil.Process]) -> process_tree.Predicate:
    """Matches what was launched together with the members, wherever it has gone since."""
    job_ids = {
        job_id
        for member in members
        if (job_id := process_tree.environment(member).get(launching.JOB_ID_VARIABLE))
    }
    return lambda process: (
        process_tree.environment(process).get(launching.JOB_ID_VARIABLE) in job_ids
    )


def is_engine(process: psutil.Process) -> bool:
    """Whether a process was started as Prefect's engine."""
    try:
        return any(protocol.ENGINE_MODULE in argument for argument in process.cmdline())
    except psutil.Error:
        return False


def wait_for_end(family: process_tree.Family, timeout_seconds: float) -> None:
    """Wait until no member is left, or the time is over."""
    deadline = time.monotonic() + timeout_seconds
    while time.monotonic() < deadline and family.survivors():
        time.sleep(POLL_SECONDS)
