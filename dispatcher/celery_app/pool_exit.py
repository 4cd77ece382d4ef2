"""How long a pool process stays when it is told to end."""

from __future__ import annotations

from billiard import pool

# Longer than a main process takes to read what a pool process has told it.
FAREWELL_SECONDS = 2.0


def shorten_farewell() -> None:
    """Have the pool processes of this worker end soon after their last task.

    Each waits until the main process has counted the results of its tasks. In a warm shutdown
    Celery's forgets a task that it has just handed over, so that this one's is never counted, and
    billiard keeps the process for 30 s; who stops workers with a time-out kills it. Nothing hangs
    on those results: what becomes of a claim is in the ledger.
    """
    interval = pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_INTERVAL
    pool.GUARANTEE_MESSAGE_CONSUMPTION_RETRY_LIMIT = round(FAREWELL_SECONDS / interval)
