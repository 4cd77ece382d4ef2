"""What is looked after all the time: runs to cancel, runs that lost their worker, work pools.

May import ledger, Prefect API, decisions, preparation and reporting. Never starts a job itself,
and knows neither of its neighbours, polling and execution.
"""

from __future__ import annotations
