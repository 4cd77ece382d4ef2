"""What the Celery processes write to the console or a file, and in which form."""

from __future__ import annotations

import logging
import logging.handlers
import sys
from pathlib import Path
from typing import Any, Literal

import click
import structlog
from celery import signals
from celery.utils.log import get_multiprocessing_logger
from click.core import ParameterSource
from structlog.typing import EventDict, Processor

from dispatcher.reporting import run_logs

# One INFO line for each request of ours.
_TALKATIVE_LOGGERS = ("httpx", "httpcore")

# What a line belongs to; other extras, such as the arguments that Celery adds, are not shown.
_FIELDS = ("flow_run_id", "claim_id", "work_pool")

Format = Literal["console", "json"]


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
    for name in run_logs.OUR_LOGGERS:
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
    fields = {name: run_logs.field(event["_record"], name) for name in _FIELDS}
    return {**event, **{name: value for name, value in fields.items() if value is not None}}
