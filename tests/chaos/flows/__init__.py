"""What the chaos runs execute; found through PYTHONPATH."""

from __future__ import annotations
