"""Where log lines go: those about a flow run to its page in the Prefect UI, all to the console.

Modules log with the standard library. What a line belongs to is bound around the work, see
:func:`bind_run`, or given with one line: ``logger.info(..., extra={"flow_run_id": run.id})``.
"""

from __future__ import annotations

import logging
import logging.handlers
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

import click
import structlog
from celery import signals
from celery.utils.log import get_multiprocessing_logger
from click.core import ParameterSource
from structlog.typing import EventDict, Processor

from dispatcher import outbox
from dispatcher.api import client, schemas

# Under this name a Prefect worker's own lines stand on a run's page.
RUN_LOGGER_NAME = "prefect.flow_runs.worker"
# A server takes lines of up to 1 MB; a character is 12 bytes at most in JSON.
MAX_MESSAGE_CHARACTERS = 80_000

# What of ours may have something to say about a run ...
_OUR_LOGGERS = ("dispatcher", "executors")
# ... and what is busy with sending it: their lines would beget lines for ever.
_SENDING_LOGGERS = ("dispatcher.api", "dispatcher.outbox")
# One INFO line for each request of ours.
_TALKATIVE_LOGGERS = ("httpx", "httpcore")

# What a line belongs to; other extras, such as the arguments that Celery adds, are not shown.
_FIELDS = ("flow_run_id", "claim_id", "work_pool")

Format = Literal["console", "json"]


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
    for name in _OUR_LOGGERS:
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


def install(log_format: Format) -> None:
    """Let the Celery workers and the beat of this process log as :func:`configure` says."""
    celery_logs = _CeleryLogs(log_format)
    signals.celeryd_init.connect(celery_logs.note_worker, weak=False)
    signals.setup_logging.connect(celery_logs.set_up, weak=False)


def configure(
    level: int | None,
    log_format: Format = "console",
    *,
    colors: bool = False,
    logfile: str | None = None,
    worker: str | None = None,
) -> None:
    """Let all lines of this process appear, each with the run it belongs to.

    Without a ``level`` the dispatcher's lines show from INFO on, all others from WARNING. They go
    to ``logfile``, else to standard error; ``worker`` names the process in JSON lines.
    """
    handler = _output(logfile)
    handler.setFormatter(_formatter(log_format, colors=colors, worker=worker))
    handler.setLevel(level or logging.NOTSET)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level or logging.WARNING)
    for name in _OUR_LOGGERS:
        # A run's page gets INFO lines, whatever the console shows.
        logging.getLogger(name).setLevel(min(level or logging.INFO, logging.INFO))
    for name in _TALKATIVE_LOGGERS:
        logging.getLogger(name).setLevel(max(level or logging.WARNING, logging.WARNING))


class _CeleryLogs:
    """Sets the logs up when Celery asks for it."""

    def __init__(self, log_format: Format) -> None:
        self._format = log_format
        self._worker: str | None = None

    def note_worker(self, sender: str, **_: Any) -> None:
        self._worker = sender

    def set_up(
        self, loglevel: int, logfile: str | None = None, colorize: bool = False, **_: Any
    ) -> None:
        configure(
            _chosen_level(loglevel),
            self._format,
            colors=bool(colorize),
            logfile=logfile,
            worker=self._worker,
        )
        # The errors of the pool itself, which Celery shows too.
        if (pool_logger := get_multiprocessing_logger()) is not None:
            pool_logger.setLevel(logging.ERROR)
            pool_logger.propagate = True


def _chosen_level(level: int) -> int | None:
    """The level that was asked for with ``--loglevel``; ``None`` if it is only Celery's default."""
    context = click.get_current_context(silent=True)
    if context and context.get_parameter_source("loglevel") is ParameterSource.DEFAULT:
        return None
    return level


def _output(logfile: str | None) -> logging.Handler:
    if logfile is None:
        return logging.StreamHandler(sys.stderr)
    return logging.handlers.WatchedFileHandler(Path(logfile), encoding="utf-8")


def _formatter(log_format: Format, *, colors: bool, worker: str | None) -> logging.Formatter:
    is_json = log_format == "json"
    time_format = "iso" if is_json else "%Y-%m-%d %H:%M:%S"
    return structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=[
            structlog.processors.TimeStamper(fmt=time_format, utc=is_json),
            structlog.stdlib.add_log_level,
            structlog.stdlib.add_logger_name,
            _add_fields,
        ],
        processors=[
            structlog.stdlib.ProcessorFormatter.remove_processors_meta,
            *(_json_processors(worker) if is_json else _console_processors(colors=colors)),
        ],
    )


def _console_processors(*, colors: bool) -> list[Processor]:
    # Not the library's own tracebacks, which show the values of variables, secrets among them.
    plain = structlog.dev.plain_traceback
    return [
        structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain, sort_keys=False)
    ]


def _json_processors(worker: str | None) -> list[Processor]:
    def add_worker(_logger: Any, _method: str, event: EventDict) -> EventDict:
        return {**event, "worker": worker} if worker else event

    return [
        add_worker,
        structlog.processors.format_exc_info,
        structlog.processors.EventRenamer("message"),
        structlog.processors.JSONRenderer(),
    ]


def _add_fields(_logger: Any, _method: str, event: EventDict) -> EventDict:
    """Add what the line belongs to."""
    fields = {name: _field(event["_record"], name) for name in _FIELDS}
    return {**event, **{name: value for name, value in fields.items() if value is not None}}


def _flow_run_id(record: logging.LogRecord) -> UUID | None:
    value = _field(record, "flow_run_id")
    return None if value is None else UUID(value)


def _field(record: logging.LogRecord, name: str) -> str | None:
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
