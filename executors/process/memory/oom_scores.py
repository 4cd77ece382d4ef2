"""Whom the kernel kills when the machine has no memory left: the worker last.

A job makes itself the first one before it begins, see :mod:`executors.process.cold.trampoline`.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

# The kernel takes this from -1000 (never) to 1000 as thousandths of the machine's memory, which
# it adds to what a process uses.
OOM_SCORE = Path("/proc/self/oom_score_adj")
LAST = -900


def be_last() -> None:
    """Have this process, and what it starts, be killed after all others, if that may be had.

    Only who has CAP_SYS_RESOURCE may go down. A number below zero is somebody's wish, and is left.
    """
    with contextlib.suppress(OSError, ValueError):
        if int(OOM_SCORE.read_text()) >= 0:
            OOM_SCORE.write_text(str(LAST))
