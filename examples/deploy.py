"""Deploys the sample flows with Prefect's own means, to the work pool named on the command line.

Run it with PREFECT_API_URL set, for instance to what ``dispatcher standalone`` prints::

    python examples/deploy.py default
"""

from __future__ import annotations

import sys
from pathlib import Path

from prefect import Flow, flow

SOURCE = Path(__file__).parent
FLOWS = ("hello", "etl", "flaky", "failing", "crashing", "long_running")


def main() -> None:
    """Create or update one deployment per flow."""
    pool = sys.argv[1] if len(sys.argv) > 1 else "default"
    for name in FLOWS:
        sample = flow.from_source(source=str(SOURCE), entrypoint=f"flows.py:{name}")
        assert isinstance(sample, Flow)  # and no coroutine, since this is not one itself
        sample.deploy(name="sample", work_pool_name=pool)


if __name__ == "__main__":
    main()
