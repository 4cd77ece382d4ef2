"""The environment of the stack's processes: the user's, without what points elsewhere."""

from __future__ import annotations

from collections.abc import Mapping

from dispatcher.standalone import ports

# The stack has a Prefect server and a profile of its own, and a run's variables are not for it.
FOREIGN_PREFIXES = (
    "CELERY_",
    "FLOWER_",  # FLOWER_UNAUTHENTICATED_API would open Flower's API to everybody
    "PREFECT_API_",
    "PREFECT_CLOUD_",
    "PREFECT_HOME",
    "PREFECT_PROFILE",
    "PREFECT_SERVER_",
    "PREFECT_UI_",
    "PREFECT__",
)
# Celery's command line reads these, without any prefix, and lets them override the application.
FOREIGN_NAMES = {"APP", "BROKER_URL", "RESULT_BACKEND", "REMAP_SIGTERM"}

NO_PROXY = f"{ports.LOOPBACK},localhost"


def own(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the stack's processes may see, and those that all of them need."""
    kept = {
        name: value
        for name, value in environment.items()
        if name not in FOREIGN_NAMES and not name.startswith(FOREIGN_PREFIXES)
    }
    for name in ("NO_PROXY", "no_proxy"):
        kept[name] = ",".join(filter(None, [kept.get(name), NO_PROXY]))
    kept["DO_NOT_TRACK"] = "1"
    kept["PYTHONUNBUFFERED"] = "1"  # a log that ends before the error is no help
    return kept
