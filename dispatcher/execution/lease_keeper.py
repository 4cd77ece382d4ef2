"""Keeping a lease while a job runs, and hearing through it what the job's holder must do."""

from __future__ import annotations

import contextvars
import logging
import threading
import time
from collections.abc import Callable

from redis import RedisError

from dispatcher import planning
from dispatcher.execution import wake_signals
from dispatcher.ledger import claims

# Of the lease: how often it is renewed, so that several renewals may fail before it is over.
RENEWALS_PER_LEASE = 5
MAX_RENEW_INTERVAL = 2.0  # seconds; also how long a cancel waits whose wake-up was lost
MAX_WATCH_INTERVAL = 1.0  # seconds

logger = logging.getLogger(__name__)


class LeaseKeeper:
    """Renews a lease from a thread of its own, at each wake-up and at intervals.

    ``on_stop`` is called with the reason whenever the job must stop, so it may be called again, by
    two threads, and must not block. While Redis is away the lease is not lost, only a fence that
    has moved on is; but a job that recovery could start again elsewhere (``may_be_restarted``) is
    stopped once the lease has not been renewed for its whole length, by this process's own clock.
    A second thread sees to that, which never waits for Redis.
    """

    def __init__(
        self,
        *,
        book: claims.Ledger,
        lease: claims.Lease,
        lease_seconds: float,
        wakeup: wake_signals.Wakeup,
        on_stop: Callable[[planning.StopReason], None],
        may_be_restarted: Callable[[], bool],
        memory_used: Callable[[], int | None],
        stop_requested: Callable[[], planning.StopReason | None],
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ledger = book
        self._lease = lease
        self._lease_seconds = lease_seconds
        self._interval = min(lease_seconds / RENEWALS_PER_LEASE, MAX_RENEW_INTERVAL)
        self._watch_interval = min(self._interval, MAX_WATCH_INTERVAL)
        self._wakeup = wakeup
        self._on_stop = on_stop
        self._may_be_restarted = may_be_restarted
        self._memory_used = memory_used
        self._stop_requested = stop_requested
        self._monotonic = monotonic
        self._renewed_at = monotonic()
        self._stopping = threading.Event()
        self._reachable = True
        self._threads = (
            _thread("lease-keeper", self._keep),
            _thread("lease-watcher", self._watch),
        )

    def __enter__(self) -> LeaseKeeper:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self._stopping.set()
        self._wakeup.set()
        for thread in self._threads:
            thread.join()

    @property
    def may_be_over(self) -> bool:
        """Whether the lease has not been renewed for its whole length, by this process's clock."""
        return self._monotonic() - self._renewed_at >= self._lease_seconds

    def look(self) -> None:
        """Renew once, now, and see whether the worker is to stop.

        Raises:
            redis.RedisError: the ledger is away.
        """
        self._check_stop_requested()
        self._renew()

    def _renew(self) -> None:
        asked_at = self._monotonic()
        renewal, cancel = self._ledger.renew(self._lease, memory=self._memory_used())
        if renewal is claims.Renewal.MISSING:
            renewal = self._restore()
        if renewal is claims.Renewal.LOST:
            self._on_stop(planning.StopReason.LOST)
            return
        self._renewed_at = asked_at
        if cancel:
            self._on_stop(planning.StopReason.CANCEL)

    def _restore(self) -> claims.Renewal:
        restored = self._ledger.restore(self._lease)
        logger.warning(
            "the ledger had lost the claim on flow run %s; %s",
            self._lease.flow_run_id,
            "it is there again" if restored else "somebody else has one now",
        )
        return claims.Renewal.HELD if restored else claims.Renewal.LOST

    def _check_stop_requested(self) -> None:
        if (reason := self._stop_requested()) is not None:
            self._on_stop(reason)

    def _check_lease_is_over(self) -> None:
        if self.may_be_over and self._may_be_restarted():
            self._on_stop(planning.StopReason.UNREACHABLE)

    def _keep(self) -> None:
        while not self._stopping.is_set():
            self._wakeup.wait(self._interval)
            if not self._stopping.is_set():
                self._try_to_look()

    def _watch(self) -> None:
        while not self._stopping.wait(self._watch_interval):
            # The keeper may hang in Redis, which must not keep the job from being stopped.
            self._check_stop_requested()
            self._check_lease_is_over()

    def _try_to_look(self) -> None:
        try:
            self.look()
        except RedisError as error:
            self._note_reachable(False, error)
        else:
            self._note_reachable(True)

    def _note_reachable(self, reachable: bool, error: RedisError | None = None) -> None:
        if reachable != self._reachable:
            run_id = self._lease.flow_run_id
            if reachable:
                logger.info("the lease of flow run %s is renewed again", run_id)
            else:
                logger.warning("the lease of flow run %s cannot be renewed: %s", run_id, error)
        self._reachable = reachable


def _thread(name: str, target: Callable[[], None]) -> threading.Thread:
    # In a copy of the context, so that its lines show which run they belong to.
    context = contextvars.copy_context()
    return threading.Thread(target=context.run, args=(target,), name=name, daemon=True)
