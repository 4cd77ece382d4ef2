"""Tests of the dispatcher."""

from __future__ import annotations
