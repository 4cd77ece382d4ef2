"""The sync task: a work pool exists, has a template, fits its executor, and shows as served."""

from __future__ import annotations

import logging

import executors
from dispatcher import errors
from dispatcher.prefect_api import client, schemas

logger = logging.getLogger(__name__)


class PoolSync:
    """Keeps one fleet's work pools in order, as Prefect's worker does at its sync.

    ``worker_name`` is the name of the whole fleet; heartbeats under it keep the pool READY and
    the worker ONLINE until three intervals have passed without one.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        worker_name: str,
        heartbeat_interval: int,
        pool_type: str,
        create_if_not_found: bool,
    ) -> None:
        self._api = api
        self._worker_name = worker_name
        self._heartbeat_interval = heartbeat_interval
        self._pool_type = pool_type
        self._create_if_not_found = create_if_not_found
        self._types_seen: dict[str, str] = {}

    def sync(self, name: str) -> bool:
        """Bring one pool in order and send a heartbeat; false if it does not exist.

        Raises:
            errors.ApiError: the API could not be asked.
        """
        pool = self._read_or_create(name)
        if pool is None:
            return False
        self._check_type(pool)
        self._repair_template(pool)
        self._api.send_worker_heartbeat(name, self._worker_name, self._heartbeat_interval)
        return True

    def _read_or_create(self, name: str) -> schemas.WorkPool | None:
        try:
            return self._api.read_work_pool(name)
        except errors.ObjectNotFound:
            if self._create_if_not_found:
                return self._create(name)
            logger.warning("work pool %r does not exist and is not to be created", name)
            return None

    def _create(self, name: str) -> schemas.WorkPool:
        template = _default_template(self._pool_type)
        if template is None:
            raise errors.SettingsError(
                f"DISPATCHER_POOL_TYPE is wrong: no executor of type {self._pool_type!r} is "
                f"installed, so work pool {name!r} was not created (known: {_known_types()})"
            )
        try:
            pool = self._api.create_work_pool(name, self._pool_type, template)
        except errors.ObjectAlreadyExists:
            # Somebody else created it in the same moment.
            return self._api.read_work_pool(name)
        logger.info("work pool %r created with type %r", name, self._pool_type)
        return pool

    def _check_type(self, pool: schemas.WorkPool) -> None:
        if self._types_seen.get(pool.name) == pool.type:
            return
        self._types_seen[pool.name] = pool.type
        if executors.get_executor_class_from_type(pool.type) is None:
            logger.error(
                "work pool %r has type %r, for which no executor is installed (known: %s); "
                "its runs are left alone",
                pool.name,
                pool.type,
                _known_types(),
            )
        elif pool.type != self._pool_type:
            logger.warning(
                "work pool %r has type %r and is served so, though DISPATCHER_POOL_TYPE is %r",
                pool.name,
                pool.type,
                self._pool_type,
            )

    def _repair_template(self, pool: schemas.WorkPool) -> None:
        template = None if pool.base_job_template else _default_template(pool.type)
        if template is not None:
            self._api.update_work_pool_template(pool.name, template)
            logger.info("work pool %r had no job template; the default one was written", pool.name)


def _known_types() -> str:
    return ", ".join(sorted(executors.get_all_available_executor_types()))


def _default_template(pool_type: str) -> dict[str, object] | None:
    executor = executors.get_executor_class_from_type(pool_type)
    return None if executor is None else executor.get_default_base_job_template()
