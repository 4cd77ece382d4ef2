"""How one claimed run is executed: its lease is held, its job started, watched and stopped.

May import ledger, Prefect API, decisions, preparation and reporting. Never looks for runs: it
gets the ids of a claim, and knows neither of its neighbours, polling and upkeep.
"""

from __future__ import annotations
