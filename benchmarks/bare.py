"""A Celery application with a task that does nothing: what Celery itself costs.

Celery's defaults, on the broker that the environment names; the task takes what ours takes.
"""

from __future__ import annotations

import os

import redis
from celery import Celery

REDIS_VARIABLE, BROKER_VARIABLE = "BENCHMARK_REDIS_URL", "BENCHMARK_BROKER_URL"
NOOP, MARK = "noop", "mark"

app = Celery("bare", broker=os.environ.get(BROKER_VARIABLE, "memory://"))
app.conf.update(task_ignore_result=True, broker_connection_retry_on_startup=True)


@app.task(name=NOOP)
def noop(_flow_run_id: str, _claim_id: str) -> None:
    """Do nothing."""


@app.task(name=MARK)
def mark() -> None:
    """Show that the tasks sent before have been taken."""
    with redis.Redis.from_url(os.environ[REDIS_VARIABLE]) as client:
        client.set(MARK, "1")
