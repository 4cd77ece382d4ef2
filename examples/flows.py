"""Ordinary Prefect flows, as a user would write them: nothing here knows of the dispatcher.

``dispatcher demo`` deploys and runs them. To deploy one yourself, to a work pool of your own::

    python examples/deploy.py
"""

from __future__ import annotations

import os
import time

from prefect import flow, get_run_logger, task


@flow
def hello(name: str = "world") -> str:
    """Greet somebody."""
    greeting = f"Hello, {name}!"
    get_run_logger().info(greeting)
    return greeting


@task
def extract(rows: int) -> list[int]:
    """Pretend to read rows from somewhere."""
    return list(range(rows))


@task
def transform(row: int) -> int:
    """Change one row."""
    return row * row


@task
def load(rows: list[int]) -> int:
    """Pretend to write the rows somewhere else."""
    return len(rows)


@flow
def etl(rows: int = 5) -> int:
    """Extract, transform and load, each row in a task of its own."""
    transformed = transform.map(extract(rows))
    return load([future.result() for future in transformed])


@flow(retries=2, retry_delay_seconds=1)
def flaky() -> str:
    """Fail at the first attempt and succeed at the second."""
    from prefect.runtime import flow_run

    if flow_run.run_count < 2:
        raise ConnectionError("the first attempt never works")
    return "it worked"


@flow
def failing() -> None:
    """Raise an error."""
    raise ValueError("this flow always fails")


@flow
def crashing() -> None:
    """Take the interpreter down, as a segmentation fault or the kernel's memory killer would."""
    os._exit(3)


@flow
def long_running(seconds: float = 600.0) -> None:
    """Take longer than anybody wants to wait, so that somebody cancels it."""
    logger = get_run_logger()
    logger.info("going to take %.0f s", seconds)
    time.sleep(seconds)
