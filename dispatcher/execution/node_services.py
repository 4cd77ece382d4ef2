"""What executors keep on a worker's node while it executes runs, such as processes to fork."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Sequence

from dispatcher import errors, settings
from dispatcher.prefect_api import schemas
from executors import base

logger = logging.getLogger(__name__)


class NodeServices:
    """The services of the executors that a worker may need. To be entered before its pool forks."""

    def __init__(
        self,
        *,
        options: settings.Settings,
        executor_types: Callable[[], Sequence[str]],
        find_executor: Callable[[str], type[base.BaseExecutor] | None],
        read_pool: Callable[[str], schemas.WorkPool],
    ) -> None:
        self._options = options
        self._executor_types = executor_types
        self._find_executor = find_executor
        self._read_pool = read_pool
        self._entered = contextlib.ExitStack()
        self._pid = os.getpid()

    def enter(self) -> None:
        """Start what the pools need, at once if Prefect tells their types, else when it is used.

        A worker serves without what cannot be started.
        """
        types = self._pool_types()
        wanted = base.NodeOptions(
            start=self._options.start,
            preload=self._options.preload,
            python=self._options.python,
            eager=types is not None,
        )
        for kind in self._executor_types() if types is None else sorted(types):
            executor = self._find_executor(kind)
            if executor is None:
                continue
            try:
                self._entered.enter_context(executor.node_services(wanted))
            except Exception:
                # Executors are anybody's code.
                logger.exception("what executor %r keeps on this node could not be started", kind)

    def leave(self) -> None:
        """End what was started; may be called again, and does nothing in a fork."""
        if os.getpid() == self._pid:
            self._entered.close()

    def _pool_types(self) -> set[str] | None:
        types = set()
        for name in self._options.work_pools:
            try:
                types.add(self._read_pool(name).type)
            except errors.ObjectNotFound:
                types.add(self._options.pool_type)
            except errors.ApiError as error:
                logger.debug("the types of the work pools are not known yet: %s", error)
                return None
        return types
