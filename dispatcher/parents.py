"""Ending with the parent process, where nobody else would see to it."""

from __future__ import annotations

import ctypes
import signal
import sys

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process end when its parent does, however that ends; Linux only.

    Celery's embedded beat would otherwise go on alone after its worker was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
