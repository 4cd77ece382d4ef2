"""The ``dispatcher`` command, as whoever runs a stack calls it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests import stack as stacks


def run(stack: stacks.Stack, *arguments: str) -> tuple[int, str]:
    """Run a command with the environment of the stack; its exit code and output."""
    done = subprocess.run(
        [str(Path(sys.executable).with_name("dispatcher")), *arguments],
        env=stack.environment,
        cwd=stack.directory,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    return done.returncode, done.stdout


def status(stack: stacks.Stack) -> tuple[int, Any]:
    """What ``dispatcher status`` says, with its exit code."""
    code, output = run(stack, "status", "--output", "json")
    return code, json.loads(output)
