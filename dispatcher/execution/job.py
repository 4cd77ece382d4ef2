"""One flow run's job on its infrastructure, as its execute task handles it."""

from __future__ import annotations

import contextvars
import logging
import threading
from collections.abc import Callable
from datetime import UTC, datetime

from dispatcher import planning
from dispatcher.prefect_api import schemas
from dispatcher.preparation import job_preparation
from executors import base, errors

logger = logging.getLogger(__name__)


class Job:
    """Runs a job in the caller's thread and can be stopped from any other, at any time.

    A stop that comes before the job exists is carried out as soon as it does; one that comes
    before :meth:`run` is for the caller to see in ``stop_reason``. ``glance`` asks Prefect for the
    run's state and tells ``None`` if there is no quick answer.
    """

    def __init__(
        self,
        *,
        grace_seconds: float,
        reschedule: bool,
        glance: Callable[[], schemas.State | None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._grace_seconds = grace_seconds
        self._reschedule = reschedule
        self._glance = glance
        self._now = now
        self._lock = threading.Lock()
        self._killer: threading.Thread | None = None
        self._prepared: job_preparation.Prepared | None = None
        self._due: datetime | None = None
        self._begun = False
        self._ended = False
        self.identifier: str | None = None
        self.stop_reason: planning.StopReason | None = None

    def run(
        self,
        flow_run: schemas.FlowRun,
        prepared: job_preparation.Prepared,
        on_started: Callable[[str], None],
        *,
        adopted: str | None = None,
    ) -> base.ExecutorResult:
        """Start the job and wait for its end; raises what the executor raises.

        With ``adopted``, the infrastructure pid of a job that is there, that one is waited for.
        """
        self._prepared = prepared
        self._due = flow_run.state.state_details.scheduled_time if flow_run.state else None

        def started(identifier: str) -> None:
            with self._lock:
                self.identifier = identifier
                if self.stop_reason is not None:
                    self._kill_in_background()
            on_started(identifier)

        try:
            if adopted is not None:
                return prepared.executor.adopt(adopted, prepared.configuration, started)
            return prepared.executor.run(flow_run, prepared.configuration, started)
        finally:
            with self._lock:
                self._ended = True
            if self._killer is not None:
                self._killer.join()

    def stop(self, reason: planning.StopReason) -> None:
        """Have the job stopped; returns at once, and may be called again.

        The first reason stays, but a lost lease outweighs a cancel. A kill that failed is tried
        again by the next call; a job that has ended is left alone.
        """
        with self._lock:
            if self.stop_reason is None or reason is planning.StopReason.LOST:
                self.stop_reason = reason
            self._kill_in_background()

    def release(self) -> None:
        """Leave the job to whom has adopted it."""
        with self._lock:
            self.stop_reason = planning.StopReason.LOST
            if self._prepared is not None and self.identifier is not None and not self._ended:
                self._prepared.executor.release(self.identifier)

    def may_be_restarted(self) -> bool:
        """Whether recovery could start the run again while this job still goes on."""
        prepared = self._prepared
        if prepared is None or self.identifier is None or prepared.infra_retries is not None:
            return True
        return not self._has_begun(prepared, self.identifier)

    def memory_used(self) -> int | None:
        """How many bytes of memory the job uses, if there is one and its executor knows."""
        prepared = self._prepared
        if prepared is None or self.identifier is None or self._ended:
            return None
        try:
            return prepared.executor.memory_used(self.identifier)
        except Exception as error:  # noqa: BLE001 - an executor is anybody's code
            logger.debug("the memory of job %s is not known: %s", self.identifier, error)
            return None

    def _has_begun(self, prepared: job_preparation.Prepared, identifier: str) -> bool:
        # An engine is there before its run is due, and waits until then.
        if self._due is not None and self._now() < self._due:
            return False
        # Remembered, since Prefect may not answer the next time.
        self._begun = self._begun or prepared.executor.has_begun(identifier) or self._is_running()
        return self._begun

    def _is_running(self) -> bool:
        state = self._glance()
        return state is not None and state.is_running

    def _kill_in_background(self) -> None:
        if self.identifier is None or self._ended:
            return
        if self._killer is not None and self._killer.is_alive():
            return
        self._killer = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._kill, self.identifier),
            name="job-killer",
            daemon=True,
        )
        self._killer.start()

    def _kill(self, identifier: str) -> None:
        try:
            self._end_politely_or_not(identifier)
        except errors.InfrastructureNotFound:
            logger.debug("job %s was gone before it could be stopped", identifier)
        except NotImplementedError as error:
            logger.error("job %s goes on: %s", identifier, error)
        except Exception:
            # Whatever an executor raises, the next renewal of the lease tries again.
            logger.exception("job %s could not be stopped yet", identifier)

    def _heed_a_cancel(self, state: schemas.State | None) -> None:
        """Let a cancel that has not come through count more than the end of the worker.

        The run would be Crashed otherwise, and could not become Cancelled any more.
        """
        if state is not None and state.is_cancelling:
            with self._lock:
                if self.stop_reason is planning.StopReason.SHUTDOWN:
                    self.stop_reason = planning.StopReason.CANCEL

    def _end_politely_or_not(self, identifier: str) -> None:
        prepared = self._prepared
        assert prepared is not None
        has_ended = False
        if self.stop_reason is planning.StopReason.SHUTDOWN:
            state = self._glance()
            self._heed_a_cancel(state)
            has_ended = state is not None and state.is_terminal
        if self.stop_reason is planning.StopReason.CANCEL:
            prepared.kill(identifier, grace_seconds=self._grace_seconds)
        elif self.stop_reason is planning.StopReason.SHUTDOWN:
            prepared.executor.interrupt_infrastructure(
                identifier,
                prepared.configuration,
                # An engine that is told to crash its run would do so even after its end.
                reschedule=has_ended
                or self._reschedule
                or prepared.infra_retries is not None
                or not self._has_begun(prepared, identifier),
                grace_seconds=self._grace_seconds,
            )
        elif self.stop_reason is planning.StopReason.TIME_LIMIT:
            # To leave the run alone: what it is told about its end names the limit.
            prepared.executor.interrupt_infrastructure(
                identifier,
                prepared.configuration,
                reschedule=True,
                grace_seconds=self._grace_seconds,
            )
        else:
            # Whoever has lost the run to somebody else has no grace to give.
            prepared.kill(identifier, grace_seconds=0.0)
