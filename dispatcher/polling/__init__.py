"""How due runs are found and claimed: the poll task, whose turn it is, what Prefect tells of.

May import ledger, Prefect API, decisions and preparation. Never executes, cancels or recovers a
run, and knows neither of its neighbours, execution and upkeep.
"""

from __future__ import annotations
