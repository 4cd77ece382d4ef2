"""Measurements of the dispatcher; ``docs/benchmarks.md`` has their results."""

from __future__ import annotations
