"""Ending with the parent process, where nobody else would see to it; Linux only."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import sys

import billiard.util

EXIT_ORPHANED = 128 + signal.SIGKILL  # as it would have ended a moment later

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Have this process end when its parent does, however that ends.

    Celery's embedded beat would otherwise go on alone after its worker was killed.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


def end_if_orphaned(parent_pid: int) -> None:
    """End this process, a pool child of that parent, if that is gone already.

    Celery has the kernel kill a child with its worker, but not before the child asks for it; one
    whose worker was killed while it started would stay.
    """
    if os.getpid() != parent_pid and os.getppid() != parent_pid:
        os._exit(EXIT_ORPHANED)


def prepare_for_children() -> None:
    """Import what Celery's way to tie a child to its worker needs, so that no child has to.

    Where cffi is installed that is a parser of C, 5 MB in each child.
    """
    with contextlib.suppress(OSError):
        billiard.util.get_pdeathsig()  # type: ignore[attr-defined]
