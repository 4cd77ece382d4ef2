"""Starting programs that end with the tests, also when those are killed."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

# Turns into the program (the arguments after the parent's pid), which then ends with its parent.
_DIES_WITH_PARENT = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
if os.getppid() != int(sys.argv[1]):
    sys.exit("the tests are gone")
os.execv(sys.argv[2], sys.argv[2:])
"""


def command(argv: Sequence[str]) -> list[str]:
    """The command line that starts ``argv`` (whose first word is a path) with its pid unchanged."""
    return [sys.executable, "-I", "-S", "-c", _DIES_WITH_PARENT, str(os.getpid()), *argv]
