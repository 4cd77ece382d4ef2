"""Whose revokes cancel a run, and which."""

from __future__ import annotations

import queue
from collections.abc import Collection
from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatcher import errors
from dispatcher.celery_app import user_revokes
from tests import waiting

SECONDS = 5.0
CLAIM, OTHER = uuid4(), uuid4()


class Worker:
    """A worker's remote control, and what it had cancelled."""

    def __init__(self, error: Exception | None = None) -> None:
        self.celery: list[object] = []
        self.cancelled: queue.Queue[tuple[set[UUID], bool]] = queue.Queue()
        self._error = error
        self.handlers: dict[str, Any] = {
            "revoke": lambda _state, task_id, **options: self.celery.append((task_id, options)),
            "terminate": lambda _state, signal, task_id: self.celery.append((task_id, signal)),
        }
        user_revokes.install(self._cancel, self.handlers)

    def _cancel(self, claim_ids: Collection[UUID], *, running: bool) -> int:
        self.cancelled.put((set(claim_ids), running))
        if self._error is not None:
            raise self._error
        return len(claim_ids)


@pytest.mark.parametrize(
    ("command", "arguments", "meant"),
    [
        ("revoke", {"task_id": str(CLAIM)}, ({CLAIM}, False)),
        ("revoke", {"task_id": [str(CLAIM), str(OTHER)]}, ({CLAIM, OTHER}, False)),
        ("revoke", {"task_id": str(CLAIM), "terminate": True}, ({CLAIM}, True)),
        (
            "revoke",
            {"task_id": str(CLAIM), "terminate": True, "signal": "SIGKILL"},
            ({CLAIM}, True),
        ),
        ("terminate", {"signal": "SIGTERM", "task_id": [str(CLAIM)]}, ({CLAIM}, True)),
    ],
)
def test_a_users_revoke_cancels_the_runs_besides_what_celery_does(
    command: str, arguments: dict[str, Any], meant: tuple[set[UUID], bool]
) -> None:
    worker = Worker()
    worker.handlers[command](None, **arguments)
    assert worker.cancelled.get(timeout=SECONDS) == meant
    assert len(worker.celery) == 1


@pytest.mark.parametrize("signal", ["SIGUSR2", 12, "12"])
def test_our_own_wake_ups_cancel_nothing(signal: object) -> None:
    worker = Worker()
    worker.handlers["revoke"](None, str(CLAIM), terminate=True, signal=signal)
    worker.handlers["revoke"](None, "no claim's", terminate=True)
    worker.handlers["revoke"](None, str(OTHER))
    assert worker.cancelled.get(timeout=SECONDS) == ({OTHER}, False)
    assert worker.cancelled.empty()


def test_a_revoke_while_prefect_is_away_is_told_in_one_line(
    caplog: pytest.LogCaptureFixture,
) -> None:
    worker = Worker(errors.ApiUnreachable("no answer"))
    worker.handlers["revoke"](None, str(CLAIM))
    waiting.wait_for(lambda: bool(caplog.messages), seconds=SECONDS, what="it is told")
    assert caplog.messages == [f"a revoke of {CLAIM} came to nothing: no answer"]
    assert caplog.records[0].exc_info is None
