"""Deploys the sample flows and runs those that are to complete, to see a new installation work.

Run it with PREFECT_API_URL set and the work pool's name::

    python examples/run_samples.py default
"""

from __future__ import annotations

import sys
from concurrent import futures

import deploy
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment

COMPLETING = ("hello", "etl", "flaky")
TIMEOUT_SECONDS = 300.0


def main() -> None:
    """Run all at once and say how each ended; exits with 1 unless all are Completed."""
    deploy.main()
    with futures.ThreadPoolExecutor() as threads:
        runs = list(threads.map(run, COMPLETING))
    for name, flow_run in zip(COMPLETING, runs, strict=True):
        print(f"{name:<8} {flow_run.name:<24} {flow_run.state_name}")
    sys.exit(any(flow_run.state_name != "Completed" for flow_run in runs))


def run(name: str) -> FlowRun:
    """Run one deployment and wait for its end."""
    flow_run = run_deployment(f"{name}/sample", timeout=TIMEOUT_SECONDS, poll_interval=1)
    assert isinstance(flow_run, FlowRun)  # and no coroutine, since this is not one itself
    return flow_run


if __name__ == "__main__":
    main()
