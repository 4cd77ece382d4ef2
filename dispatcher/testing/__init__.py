"""Stand-ins for tests and benchmarks that behave like what they stand in for.

May import the ledger's values, the Prefect API and the executors' registry. Never used by the
product itself; the conformance suite for executors is for anybody.
"""

from __future__ import annotations
