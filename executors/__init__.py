"""Executors start, watch and kill the jobs of flow runs; they are found by work pool type.

An executor registers in the entry-point group ``dispatcher.executors``. The name of its entry
point is the type of the work pools that it serves.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable
from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from executors import base

ENTRY_POINT_GROUP = "dispatcher.executors"

logger = logging.getLogger(__name__)


def _installed_entry_points() -> Iterable[metadata.EntryPoint]:
    return metadata.entry_points(group=ENTRY_POINT_GROUP)


class ExecutorRegistry:
    """The executors that are installed. Each is imported when it is first asked for.

    One that cannot be imported is reported once in the log and counts as not installed.
    """

    def __init__(
        self,
        entry_points: Callable[[], Iterable[metadata.EntryPoint]] = _installed_entry_points,
    ) -> None:
        self._entry_points = entry_points
        self._lock = threading.RLock()
        self._unloaded: dict[str, metadata.EntryPoint] | None = None
        self._loaded: dict[str, type[base.BaseExecutor]] = {}

    def get(self, type: str) -> type[base.BaseExecutor] | None:  # noqa: A002 - Prefect's word
        """Return the executor class for a work pool type, ``None`` if there is none."""
        with self._lock:
            entry_point = self._to_load().pop(type, None)
            if entry_point is not None and (executor := _load(entry_point)) is not None:
                self._loaded[type] = executor
            return self._loaded.get(type)

    def types(self) -> list[str]:
        """Return the types of all executors that can be imported, in alphabetical order."""
        with self._lock:
            for name in list(self._to_load()):
                self.get(name)
            return sorted(self._loaded)

    def _to_load(self) -> dict[str, metadata.EntryPoint]:
        if self._unloaded is None:
            self._unloaded = {point.name: point for point in self._entry_points()}
        return self._unloaded


def _load(entry_point: metadata.EntryPoint) -> type[base.BaseExecutor] | None:
    try:
        executor: type[base.BaseExecutor] = entry_point.load()
        own_type = executor.type
    except Exception as error:  # noqa: BLE001 - a stranger's module may raise anything
        logger.warning(
            "Executor %r (%s) cannot be used: %s: %s",
            entry_point.name,
            entry_point.value,
            type(error).__name__,
            error,
        )
        return None
    if own_type != entry_point.name:
        logger.warning(
            "Executor %r (%s) says that its type is %r; it serves work pools of type %r.",
            entry_point.name,
            entry_point.value,
            own_type,
            entry_point.name,
        )
    return executor


_registry = ExecutorRegistry()


def get_executor_class_from_type(type: str) -> type[base.BaseExecutor] | None:  # noqa: A002
    """Return the executor class for a work pool type, ``None`` if there is none."""
    return _registry.get(type)


def get_all_available_executor_types() -> list[str]:
    """Return the work pool types that can be served here, in alphabetical order."""
    return _registry.types()
