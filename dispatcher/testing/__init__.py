"""Stand-ins for tests and benchmarks that behave like what they stand in for."""

from __future__ import annotations
