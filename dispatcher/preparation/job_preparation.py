"""What a run's job needs before it can be started or killed: its executor and configuration."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from dispatcher import errors as dispatcher_errors
from dispatcher.prefect_api import catalog, client, schemas
from dispatcher.preparation import template_references
from executors import base, configuration, errors

# Prefect's own labels of a run; by this one it is known as ours when its claim is gone.
WORKER_NAME_LABEL = "prefect.worker.name"
INFRA_RETRIES_VARIABLE = "infra_retries"

logger = logging.getLogger(__name__)

FindExecutor = Callable[[str], type[base.BaseExecutor] | None]


@dataclass(frozen=True)
class Prepared:
    """An executor and the run's configuration for it."""

    pool: schemas.WorkPool
    executor: base.BaseExecutor
    configuration: Any
    labels: dict[str, str]
    infra_retries: int | None

    @property
    def reports_exit_code(self) -> bool:
        """Whether the job's exit code tells how its run ended."""
        return bool(self.configuration.reports_exit_code)

    def find(self, run: schemas.FlowRun) -> str | None:
        """Find the run's job that has outlived its worker; as ``find_infrastructure`` does."""
        return self.executor.find_infrastructure(run, self.configuration)

    def kill(self, infrastructure_pid: str, *, grace_seconds: float) -> None:
        """Kill the run's job; raises as ``BaseExecutor.kill_infrastructure`` does."""
        self.executor.kill_infrastructure(
            infrastructure_pid, self.configuration, grace_seconds=grace_seconds
        )


class Preparation:
    """Resolves job configurations where they are used, so that no secret enters a message."""

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        known: catalog.Catalog,
        find_executor: FindExecutor,
        worker_name: str,
        pool_type: str,
    ) -> None:
        self._catalog = known
        self._references = template_references.References(api)
        self._find_executor = find_executor
        self._worker_name = worker_name
        self._pool_type = pool_type
        self._instances: dict[str, base.BaseExecutor] = {}

    def prepare(self, run: schemas.FlowRun, pool_name: str) -> Prepared:
        """Find the executor for a run and build its configuration.

        Raises:
            dispatcher.errors.DeploymentNotFound: the run's deployment does not exist.
            dispatcher.errors.ApiError: the API could not be asked.
            executors.errors.ExecutorError: the configuration cannot be built, no executor of the
                pool's type is installed, or the deployment's code is in a storage block.
        """
        pool = self._catalog.pool(pool_name)
        deployment = self._deployment(run)
        _refuse_storage_block(deployment)
        return self._resolve(run, pool, deployment)

    def prepare_kill(self, run: schemas.FlowRun, pool_name: str) -> Prepared:
        """Prepare to kill a run's job, whatever was deleted meanwhile; raises as :meth:`prepare`.

        Without its pool, it counts as one of a pool of the type that this dispatcher would create.
        """
        deployment = None
        with contextlib.suppress(dispatcher_errors.DeploymentNotFound):
            deployment = self._deployment(run)
        return self._resolve(run, self._pool_or_like(pool_name), deployment)

    def _pool_or_like(self, name: str) -> schemas.WorkPool:
        if name:
            with contextlib.suppress(dispatcher_errors.ObjectNotFound):
                return self._catalog.pool(name)
        return schemas.WorkPool(id=UUID(int=0), name=name, type=self._pool_type)

    def _resolve(
        self, run: schemas.FlowRun, pool: schemas.WorkPool, deployment: schemas.Deployment | None
    ) -> Prepared:
        flow = self._catalog.flow(run.flow_id)
        executor = self._executor(pool.type)
        values = _job_variables(run, deployment)
        # An empty template means "none yet": the sync task is about to write the default one.
        template = pool.base_job_template or executor.get_default_base_job_template()
        resolved = executor.job_configuration.from_template_and_values(
            template, values, self._references
        )
        resolved.prepare_for_flow_run(
            run, deployment=deployment, flow=flow, work_pool=pool, worker_name=self._worker_name
        )
        return Prepared(
            pool, executor, resolved, self._labels(pool), _infra_retries(run.id, values)
        )

    def infra_retries(self, run: schemas.FlowRun) -> int | None:
        """How often a run is started again after its infrastructure failed, if it says so itself.

        The job variable ``infra_retries`` of its deployment, or of the run; ``None`` if neither
        has it. Raises :class:`dispatcher.errors.ApiError` if the API could not be asked.
        """
        try:
            deployment = self._deployment(run)
        except dispatcher_errors.DeploymentNotFound:
            return None
        return _infra_retries(run.id, _job_variables(run, deployment))

    def _deployment(self, run: schemas.FlowRun) -> schemas.Deployment | None:
        if run.deployment_id is None:
            return None
        try:
            return self._catalog.deployment(run.deployment_id)
        except dispatcher_errors.ObjectNotFound as error:
            raise dispatcher_errors.DeploymentNotFound(detail=error.detail) from error

    def _labels(self, pool: schemas.WorkPool) -> dict[str, str]:
        return {
            WORKER_NAME_LABEL: self._worker_name,
            "prefect.worker.type": pool.type,
            "prefect.work-pool.name": pool.name,
            "prefect.work-pool.id": str(pool.id),
        }

    def _executor(self, pool_type: str) -> base.BaseExecutor:
        # One instance for each type: it knows the jobs that run in this process.
        if pool_type not in self._instances:
            found = self._find_executor(pool_type)
            if found is None:
                raise errors.ConfigurationError(
                    f"no executor is installed for work pools of type {pool_type!r}"
                )
            self._instances.setdefault(pool_type, found())
        return self._instances[pool_type]


def _refuse_storage_block(deployment: schemas.Deployment | None) -> None:
    # As Prefect's workers did before a run was left to them at all.
    if deployment is not None and deployment.storage_document_id is not None:
        raise errors.ConfigurationError(
            f"deployment {deployment.name!r} keeps its code in a storage block, which workers do"
            " not support; deploy it again with pull steps"
        )


def _job_variables(run: schemas.FlowRun, deployment: schemas.Deployment | None) -> dict[str, Any]:
    return configuration.merge_job_variables(
        deployment.job_variables if deployment else {}, run.job_variables or {}
    )


def _infra_retries(run_id: UUID, values: dict[str, Any]) -> int | None:
    value = values.get(INFRA_RETRIES_VARIABLE)
    if value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0):
        return value
    logger.warning(
        "flow run %s: the job variable %s is no number of times and is left out of account",
        run_id,
        INFRA_RETRIES_VARIABLE,
    )
    return None
