"""From a flow run to its job: under which name it is sent, which executor starts it, and how.

May import the executors' registry, the ledger, the Prefect API and errors. Never starts a job and
keeps no secret: what a template refers to is read anew for each run.
"""

from __future__ import annotations
