"""What the tests of execution and cancellation share: a pool, claims, and an executor to script."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID, uuid4

from redis import Redis

from dispatcher import planning
from dispatcher.execution import claim_execution, stop_requests, time_limits, wake_signals
from dispatcher.ledger import claims, redis_ledger
from dispatcher.prefect_api import catalog, schemas
from dispatcher.preparation import job_preparation
from dispatcher.reporting import run_labels, state_reporter, worker_events
from dispatcher.testing import prefect_api, prefect_objects
from executors import base, configuration

S = schemas.StateType

POOL = "pool"
TYPE = "scripted"
WORKER_NAME = "fleet"
WORKER = "runs@node"  # a Celery worker
MEMORY = 123 * 2**20

PID = "host:1"
FOR_GOOD = 10_000  # times
LEASE_SECONDS = 1.0  # renewed every 0.2 s
GRACE_SECONDS = 7.0
STUCK_SECONDS = 20.0  # how long a job that should have been stopped holds up its test


@dataclass
class Script:
    """What a job does: ``before``, then ``started`` (unless ``pid`` is ``None``), then ``during``.

    With ``blocks`` it goes on until it is killed, or ``release`` is set. ``kill_errors`` are what
    the first kills raise.
    """

    before: Callable[[], object] = lambda: None
    during: Callable[[], object] = lambda: None
    pid: str | None = PID
    blocks: bool = False
    result: base.ExecutorResult = field(default_factory=lambda: base.ExecutorResult(PID, 0))
    job_configuration: type[configuration.BaseJobConfiguration] = configuration.BaseJobConfiguration
    kill_errors: list[Exception] = field(default_factory=list)
    interrupt_errors: list[Exception] = field(default_factory=list)
    has_begun: bool = False
    memory: Callable[[], int] = lambda: MEMORY
    configurations: list[Any] = field(default_factory=list)
    kills: list[tuple[str, float]] = field(default_factory=list)
    interrupts: list[tuple[str, bool, float]] = field(default_factory=list)
    release: threading.Event = field(default_factory=threading.Event)

    @property
    def began(self) -> bool:
        """Whether the executor was asked to run the job."""
        return bool(self.configurations)

    def executor(self) -> type[base.BaseExecutor]:
        """An executor whose jobs follow this script."""

        class Scripted(ScriptedExecutor):
            job_configuration = self.job_configuration
            script = self

        return Scripted


class ScriptedExecutor(base.BaseExecutor):
    """Runs jobs that follow a script, in the caller's thread."""

    type = TYPE
    script: Script

    def run(
        self, flow_run: schemas.FlowRun, configuration: Any, started: Callable[[str], None]
    ) -> base.ExecutorResult:
        script = self.script
        script.configurations.append(configuration)
        script.before()
        if script.pid is not None:
            started(script.pid)
        script.during()
        if script.blocks:
            assert script.release.wait(STUCK_SECONDS), "the job was not stopped"
        return script.result

    def has_begun(self, infrastructure_pid: str) -> bool:
        return self.script.has_begun

    def memory_used(self, infrastructure_pid: str) -> int:
        return self.script.memory()

    def interrupt_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: Any,
        *,
        reschedule: bool,
        grace_seconds: float = base.GRACE_SECONDS,
    ) -> None:
        self.script.interrupts.append((infrastructure_pid, reschedule, grace_seconds))
        if self.script.interrupt_errors:
            raise self.script.interrupt_errors.pop(0)
        self.script.release.set()

    def kill_infrastructure(
        self,
        infrastructure_pid: str,
        configuration: Any,
        grace_seconds: float = base.GRACE_SECONDS,
    ) -> None:
        self.script.kills.append((infrastructure_pid, grace_seconds))
        if self.script.kill_errors:
            raise self.script.kill_errors.pop(0)
        self.script.release.set()


@dataclass
class Scene:
    """A pool with a deployment, and claims on its runs.

    ``hooks`` run before requests to their route are sent; the objects' requests have none.
    """

    prefect: prefect_api.FakePrefect
    redis: Redis
    script: Script = field(default_factory=Script)
    hooks: dict[str, Callable[[], object]] = field(default_factory=dict)
    nudged: list[str] = field(default_factory=list)
    emitted: list[schemas.Event] = field(default_factory=list)
    labelled: list[run_labels.RunLabels] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.quiet_api = self.prefect.client()
        self.api = self.prefect.client(on_request=self._on_request, sleep=lambda _seconds: None)
        self.objects = prefect_objects.PrefectObjects(self.quiet_api)
        self.objects.pool(
            POOL, type=TYPE, base_job_template=ScriptedExecutor.get_default_base_job_template()
        )
        self.deployment = self.objects.deployment(POOL)
        self.book = redis_ledger.RedisLedger(self.redis)
        self.wakes = wake_signals.Wakeups()
        self.limits = time_limits.TimeLimits(GRACE_SECONDS)
        self.requests = stop_requests.StopRequests(self.wakes.wake_all)
        self.worker_events = worker_events.WorkerEvents(
            self.emitted.append, worker_name=WORKER_NAME
        )

    def close(self) -> None:
        self.api.transport.close()
        self.quiet_api.transport.close()

    def claim(self, *, run: schemas.FlowRun | None = None, **values: Any) -> claims.NewClaim:
        """Claim a new run (or a given one) as the poller does."""
        run = run or self.objects.run(self.deployment, **values)
        claim = claims.NewClaim(run.id, uuid4())
        transition_id = claims.new_transition_id(WORKER_NAME)
        opened = self.book.open([claim], pool=POOL, transition_id=transition_id, slots=1000)
        assert opened == [claim]
        pending = schemas.StateProposal(type=S.PENDING, name="Pending", transition_id=transition_id)
        result = self.quiet_api.set_flow_run_state(run.id, pending)
        assert planning.is_granted(result, transition_id=transition_id)
        assert self.book.accept(claim)
        return claim

    def preparation(self) -> job_preparation.Preparation:
        executors = {TYPE: self.script.executor()}
        return job_preparation.Preparation(
            api=self.api,
            known=catalog.Catalog(self.api),
            find_executor=executors.get,
            worker_name=WORKER_NAME,
            pool_type=TYPE,
        )

    def execution(self, **options: Any) -> claim_execution.Execution:
        values: dict[str, Any] = {
            "api": self.api,
            "book": self.book,
            "prepare": self.preparation(),
            "reporter": state_reporter.Reporter(self.api),
            "events": self.worker_events,
            "put_labels": self.labelled.append,
            "worker_name": WORKER_NAME,
            "wakes": self.wakes,
            "requests": self.requests,
            "limits": self.limits,
            "nudge": self.nudged.append,
            "pools": (),
            "lease_seconds": LEASE_SECONDS,
            "grace_seconds": GRACE_SECONDS,
            "infra_retries": 3,
            "reschedule_on_shutdown": False,
        }
        return claim_execution.Execution(**values | options)

    def execute(self, claim: claims.NewClaim, **options: Any) -> str:
        return self.execution(**options).execute(claim, worker=WORKER)

    def set_state(self, claim: claims.NewClaim, *types: S) -> None:
        """What a run's own engine, or a user, writes: a state after the other, unforced."""
        for type_ in types:
            proposal = schemas.StateProposal(type=type_)
            result = self.quiet_api.set_flow_run_state(claim.flow_run_id, proposal)
            assert result.status is schemas.OrchestrationStatus.ACCEPT, result

    def cancel(self, claim: claims.NewClaim) -> claims.CancelResult:
        """A user cancels the run and the cancel task hears of it."""
        self.set_state(claim, S.CANCELLING)
        return self.book.request_cancel(claim.flow_run_id)[0]

    def supersede(self, claim: claims.NewClaim) -> claims.NewClaim:
        """Take the run away from its holder: a new claim, held by somebody else."""
        held = self.book.get(claim.flow_run_id)
        assert held is not None
        assert self.book.close(claim, fence=held.fence)
        later = claims.NewClaim(claim.flow_run_id, uuid4())
        self.book.open([later], pool=POOL, transition_id=uuid4(), slots=1000)
        lease = self.book.acquire(later, owner="another#1")
        assert isinstance(lease, claims.Lease)
        return later

    def fail(self, kind: prefect_api.FaultKind, route: str, **values: Any) -> None:
        self.prefect.faults.append(prefect_api.Fault(kind, route=route, **values))

    def history(self, flow_run_id: UUID) -> list[str]:
        return [state.name for state in self.prefect.states(flow_run_id)]

    def last_message(self, flow_run_id: UUID) -> str | None:
        return self.prefect.states(flow_run_id)[-1].message

    def stage(self, flow_run_id: UUID) -> claims.Stage | None:
        claim = self.book.get(flow_run_id)
        return claim.stage if claim else None

    def _on_request(self, method: str, route: str) -> None:
        hook = self.hooks.pop(f"{method} {route}", None)
        if hook is not None:
            hook()
