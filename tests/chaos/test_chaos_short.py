"""A round of chaos, other choices each time; its seed is printed, to repeat it."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import pytest

from tests.chaos import driver

# Start, faults, and what they leave to be waited for.
TIMEOUT_SECONDS = 600
# Runs, and faults, of a round that is worth something.
ENOUGH = 20


@pytest.mark.timeout(TIMEOUT_SECONDS)
def test_the_promises_hold_under_random_faults(pytestconfig: pytest.Config) -> None:
    seed = random.randrange(10**6)
    print(f"seed: {seed}")
    # Not pytest's own directory, whose path may be too long for a socket.
    with tempfile.TemporaryDirectory(prefix="chaos-") as directory:
        report = driver.run(
            driver.PROFILES["short"],
            seed=seed,
            directory=Path(directory),
            cache=pytestconfig.cache.mkdir("prefect"),
        )
    print(report)
    assert report.settled_after is not None
    assert not report.violations
    # How many there are of each is left to chance, and which are more as well.
    assert len(report.found) >= ENOUGH
    assert sum(report.injected.values()) >= ENOUGH
