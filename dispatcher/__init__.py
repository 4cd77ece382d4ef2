"""Runs Prefect flow runs on a Celery fleet.

Kept free of imports so that ``celery -A dispatcher …`` and the tests start quickly.
"""

from __future__ import annotations

__version__ = "0.1.0"
