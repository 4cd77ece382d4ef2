"""Redis, a Prefect server, workers, beat and Flower on one machine, under one command.

May import errors, the Prefect API and the fleet's reports. Never does a worker's work itself: it
starts the programs that a user would start, and ends them.
"""

from __future__ import annotations
