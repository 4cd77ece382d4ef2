"""Gives a Celery worker and all that it starts a host name of their own; needs to be root.

Python imports this by its name at every start. What the workers share besides, the process table
above all, they have in common still.
"""

from __future__ import annotations

import ctypes
import os
import socket

CLONE_NEWUTS = 0x04000000

if host := os.environ.pop("CHAOS_HOST", None):
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWUTS) != 0:
        raise OSError(ctypes.get_errno(), "no host name of its own for a worker")
    socket.sethostname(host)
