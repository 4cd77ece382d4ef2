"""The parts of :class:`dispatcher.testing.prefect_api.FakePrefect`."""

from __future__ import annotations
