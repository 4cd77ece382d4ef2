"""The conversation with Prefect's engine in a job: its bytes, and the socket they come by.

Prefect keeps this interface to itself, so a job must be stoppable without it.
"""

from __future__ import annotations
