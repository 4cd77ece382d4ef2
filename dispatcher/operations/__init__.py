"""What an operator looks at and asks for: the status of the fleet, its health, a drain.

May import ledger, Prefect API, decisions and errors. Never changes a run or a claim.
"""

from __future__ import annotations
