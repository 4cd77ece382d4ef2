"""``dispatcher demo`` as users start it."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from dispatcher.standalone import samples
from tests.commands import Command

# The runs themselves take half a minute; the machine may be busy.
DEMO_SECONDS = 280.0


@pytest.fixture
def temporary(tmp_path: Path) -> Path:
    """Where the demo puts its files."""
    directory = tmp_path / "temporary"
    directory.mkdir()
    return directory


@pytest.mark.timeout(DEMO_SECONDS + 60)
def test_demo_runs_every_sample_and_leaves_nothing_behind(temporary: Path) -> None:
    with Command(
        "demo",
        "--timeout=200",
        output=temporary.parent / "output",
        environment={"TMPDIR": str(temporary)},
    ) as command:
        code = command.wait(DEMO_SECONDS)
        output = command.output
        left = command.processes()

    assert code == 0, output
    assert f"All {len(samples.SAMPLES)} runs ended as they have to" in output
    for sample in samples.SAMPLES:
        assert f"{sample.name} " in output
    assert "✗" not in output
    assert left == []
    assert list(temporary.iterdir()) == []


def test_interrupted_demo_leaves_nothing_behind(temporary: Path) -> None:
    with Command(
        "demo", output=temporary.parent / "output", environment={"TMPDIR": str(temporary)}
    ) as command:
        command.wait_for_output("redis is ready", seconds=60)
        command.send(signal.SIGINT)
        code = command.wait()
        left = command.processes()

    assert code == 1
    assert "asked to stop" in command.output
    assert left == []
    assert list(temporary.iterdir()) == []
