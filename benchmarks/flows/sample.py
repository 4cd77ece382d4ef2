"""The flows that are measured."""

from __future__ import annotations

import time

from prefect import flow


@flow
def empty() -> None:
    """Do nothing."""


@flow
def sleep(seconds: float = 1.0) -> None:
    """Wait, as most flows do most of their time."""
    time.sleep(seconds)


@flow
def pandas() -> int:
    """Import what many flows import first."""
    import pandas as pd

    return int(pd.DataFrame({"x": [1, 2]})["x"].sum())
