"""Celery pools for tests that start none."""

from __future__ import annotations

from celery.concurrency import base


class Processes(base.BasePool):
    """A pool as Celery's prefork pool is once it has started."""

    def __init__(self, limit: int) -> None:
        super().__init__(limit)
        vars(self)["terminate_job"] = lambda _pid, _signal=None: None
