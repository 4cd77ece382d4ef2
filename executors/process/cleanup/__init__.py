"""Finding and killing all processes of a job, also those that have left its session.

Reads ``/proc`` and environments; never asks the engine anything.
"""

from __future__ import annotations
