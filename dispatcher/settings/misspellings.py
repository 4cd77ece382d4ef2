"""Variables that look like settings of the dispatcher and are none."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Iterable

from dispatcher.settings import model, origins

# What processes of the dispatcher tell each other.
INTERNAL = frozenset(
    {
        "DISPATCHER_CGROUP",
        "DISPATCHER_FORK_SERVERS",
        "DISPATCHER_JOB_ID",
        "DISPATCHER_NO_JOB",
        "DISPATCHER_NO_RUN_ID",
        "DISPATCHER_WORKER_PYTHON",
    }
)


def known() -> frozenset[str]:
    """The names of all settings of our own."""
    fields = model.Settings.model_fields.items()
    return frozenset(origins.variable_of(name, field) for name, field in fields)


def find(names: Iterable[str]) -> list[str]:
    """Say of each variable that is no setting which one may have been meant."""
    ours = known()
    unknown = sorted(
        name
        for name in names
        if name.upper().startswith(model.ENV_PREFIX) and name.upper() not in ours | INTERNAL
    )
    return [_sentence(name, ours) for name in unknown]


def _sentence(name: str, ours: Collection[str]) -> str:
    bare = name.upper().removeprefix(model.ENV_PREFIX)
    close = (
        [bare] if bare in ours else difflib.get_close_matches(name.upper(), ours, n=1, cutoff=0.75)
    )
    hint = f"; did you mean {close[0]}?" if close else " and is left out of account"
    return f"{name} is no setting of the dispatcher{hint}"
