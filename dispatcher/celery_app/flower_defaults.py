"""What ``celery -A dispatcher flower`` shows if its user says nothing else."""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence

# Flower takes these for less than its own options and its configuration file.
DEFAULTS = {
    "FLOWER_TASKS_COLUMNS": "name,args,state,received,started,runtime,worker,uuid",
    "FLOWER_MAX_TASKS": "10000",
}


def apply(environ: MutableMapping[str, str], arguments: Sequence[str]) -> None:
    """Set what is not set yet, in the process that is to be Flower."""
    if "flower" in arguments:
        for name, value in DEFAULTS.items():
            environ.setdefault(name, value)
