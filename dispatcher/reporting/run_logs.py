"""The dispatcher's log lines about a flow run, on their way to its page in the Prefect UI.

Modules log with the standard library. What a line belongs to is bound around the work, see
:func:`bind_run`, or given with one line: ``logger.info(..., extra={"flow_run_id": run.id})``.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from uuid import UUID

import structlog

from dispatcher.prefect_api import client, schemas
from dispatcher.reporting import outbox

# Under this name a Prefect worker's own lines stand on a run's page.
RUN_LOGGER_NAME = "prefect.flow_runs.worker"
# A server takes lines of up to 1 MB; a character is 12 bytes at most in JSON.
MAX_MESSAGE_CHARACTERS = 80_000

# What of ours may have something to say about a run ...
OUR_LOGGERS = ("dispatcher", "executors")
# ... and what is busy with sending it: their lines would beget lines for ever.
_SENDING_LOGGERS = ("dispatcher.prefect_api", "dispatcher.reporting.outbox")


def bind_run(flow_run_id: UUID, claim_id: UUID, pool: str) -> AbstractContextManager[None]:
    """Say what the lines of this thread belong to while the context lasts.

    A thread that is started meanwhile does not inherit it; run it in a copy of the context.
    """
    return structlog.contextvars.bound_contextvars(
        flow_run_id=str(flow_run_id), claim_id=str(claim_id), work_pool=pool
    )


def new_outbox(api: client.PrefectClient) -> outbox.Outbox[schemas.LogEntry]:
    """An outbox that adds the lines put into it to their runs' logs."""
    return outbox.Outbox(api.create_logs, name="log lines")


def attach(put: Callable[[schemas.LogEntry], None]) -> None:
    """Pass the dispatcher's lines about flow runs to ``put`` from now on, in place of before."""
    handler = FlowRunLogHandler(put)
    for name in OUR_LOGGERS:
        ours = logging.getLogger(name)
        for old in [each for each in ours.handlers if isinstance(each, FlowRunLogHandler)]:
            ours.removeHandler(old)
        ours.addHandler(handler)


class FlowRunLogHandler(logging.Handler):
    """Turns records that belong to a flow run into lines for its page; ignores all others."""

    def __init__(self, put: Callable[[schemas.LogEntry], None], level: int = logging.INFO) -> None:
        super().__init__(level)
        self._put = put

    def emit(self, record: logging.LogRecord) -> None:
        """Pass on one record."""
        try:
            flow_run_id = _flow_run_id(record)
            if flow_run_id is not None and not _is_about_sending(record):
                self._put(self._entry(record, flow_run_id))
        except Exception:  # noqa: BLE001 - as every handler of the standard library
            self.handleError(record)

    def _entry(self, record: logging.LogRecord, flow_run_id: UUID) -> schemas.LogEntry:
        return schemas.LogEntry(
            name=RUN_LOGGER_NAME,
            level=record.levelno,
            message=_storable(self.format(record)),
            timestamp=datetime.fromtimestamp(record.created, UTC),
            flow_run_id=flow_run_id,
        )


def _flow_run_id(record: logging.LogRecord) -> UUID | None:
    value = field(record, "flow_run_id")
    return None if value is None else UUID(value)


def field(record: logging.LogRecord, name: str) -> str | None:
    """What was given with the line itself, else what is bound around it."""
    value = getattr(record, name, None)
    if value is None:
        value = structlog.contextvars.get_contextvars().get(name)
    return None if value is None else str(value)


def _is_about_sending(record: logging.LogRecord) -> bool:
    return any(
        record.name == name or record.name.startswith(f"{name}.") for name in _SENDING_LOGGERS
    )


def _storable(message: str) -> str:
    """A message as any server takes it: whole characters, none of them NUL, not too many."""
    if len(message) > MAX_MESSAGE_CHARACTERS:
        half = MAX_MESSAGE_CHARACTERS // 2
        message = f"{message[:half]}\n[... cut ...]\n{message[-half:]}"
    return message.replace("\0", "").encode("utf-8", "replace").decode("utf-8")
