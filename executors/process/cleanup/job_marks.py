"""What tells the processes of a job from all others: variables in their environment.

Standard library only, since the fork server uses it as well.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping

# Marks every process of one launch, also those that left its session.
JOB_ID_VARIABLE = "DISPATCHER_JOB_ID"
FLOW_RUN_ID_VARIABLE = "PREFECT__FLOW_RUN_ID"

JOB_ID_CHARACTERS = 32
FLOW_RUN_ID_CHARACTERS = 36

# What a fork server has in their place: as long, and a mark of no job.
PLACEHOLDERS = {
    JOB_ID_VARIABLE: ("DISPATCHER_NO_JOB", JOB_ID_CHARACTERS),
    FLOW_RUN_ID_VARIABLE: ("DISPATCHER_NO_RUN_ID", FLOW_RUN_ID_CHARACTERS),
}


def placeholders() -> dict[str, str]:
    """The variables with which a fork server has to be started."""
    return {name: "-" * characters for name, characters in PLACEHOLDERS.values()}


class WritableMarks:
    """Lets a forked process show the marks of its job in ``/proc/<pid>/environ``.

    The kernel shows the memory that the program's first environment was put into, which no
    change of a variable ever touches. To be made before the environment changes; takes the
    placeholders out of it.
    """

    def __init__(self) -> None:
        libc = ctypes.CDLL(None)
        libc.getenv.restype = ctypes.c_void_p
        self._entries: dict[str, tuple[int, int]] = {}
        for variable, (placeholder, _) in PLACEHOLDERS.items():
            value = libc.getenv(placeholder.encode())
            if value is not None:
                size = len(placeholder) + 1 + len(os.environ[placeholder])
                self._entries[variable] = (value - len(placeholder) - 1, size)
        for placeholder, _ in PLACEHOLDERS.values():
            os.environ.pop(placeholder, None)

    def write(self, environment: Mapping[str, str]) -> None:
        """Put the marks of an environment in the place of the placeholders."""
        for variable, (address, size) in self._entries.items():
            entry = f"{variable}={environment.get(variable, '')}".encode()
            if len(entry) == size:
                ctypes.memmove(address, entry, size)
