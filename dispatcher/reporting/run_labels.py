"""The labels of Prefect's own workers on flow runs, written in the background.

They tell a user which worker and pool a run was executed by; nothing is decided by them. A server
on SQLite often has no time for them, which must not hold up a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from uuid import UUID

from pydantic import BaseModel

from dispatcher import errors
from dispatcher.prefect_api import client
from dispatcher.reporting import outbox


class RunLabels(BaseModel):
    """Labels for one run."""

    flow_run_id: UUID
    labels: dict[str, str]


def new_outbox(api: client.PrefectClient) -> outbox.Outbox[RunLabels]:
    """An outbox that puts the labels put into it on their runs."""

    def send(batch: Sequence[RunLabels]) -> None:
        for each in batch:
            try:
                api.update_flow_run_labels(each.flow_run_id, each.labels)
            except errors.ObjectNotFound:
                # The run was deleted, or the server is older than labels.
                continue

    return outbox.Outbox(send, name="labels of flow runs")
