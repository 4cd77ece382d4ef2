"""A flow whose import never ends: its job can only be stopped during start-up."""

from __future__ import annotations

import os
import time
from pathlib import Path

from prefect import flow

Path(os.environ["TEST_REPORT"]).write_text("importing\n")
time.sleep(300)


@flow
def never(report: str) -> None:
    """Is not reached."""
