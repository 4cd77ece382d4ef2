"""Where the dispatcher's data is in Redis."""

from __future__ import annotations

# One hash tag, so that a cluster keeps all keys in one place.
PREFIX = "{dispatcher}:"
