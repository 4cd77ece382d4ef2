"""What the fleet keeps in Redis, and what decides there: claims, locks, slots, signs of life.

May import nothing of ours. Never asks Prefect, Celery or an executor anything; it may lose all
that it has, since the truth about a run is its Prefect state.
"""

from __future__ import annotations
