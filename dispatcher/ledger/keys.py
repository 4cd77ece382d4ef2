"""Where the dispatcher's data is in Redis."""

from __future__ import annotations

DEFAULT_NAMESPACE = "dispatcher"


def prefix_of(namespace: str) -> str:
    """What the keys of a namespace begin with: one hash tag, so that a cluster has all together."""
    return f"{{{namespace}}}:"


PREFIX = prefix_of(DEFAULT_NAMESPACE)
