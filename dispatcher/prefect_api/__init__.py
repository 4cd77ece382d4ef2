"""The Prefect server as this product uses it: its HTTP routes, its events, its objects.

May import settings and errors. Never decides anything, and knows nothing of claims or Celery;
nobody else speaks HTTP or websockets.
"""

from __future__ import annotations
