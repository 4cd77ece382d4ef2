"""Redis, a Prefect server, workers, beat and Flower on one machine, under one command."""

from __future__ import annotations
