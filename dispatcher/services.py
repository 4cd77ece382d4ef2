"""Puts the parts together, once for each process."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol
from uuid import UUID

import redis

import executors
from dispatcher import (
    beats,
    cancellation,
    catalog,
    claims,
    connections,
    events,
    execution,
    fleet,
    labels,
    ledger,
    locks,
    logs,
    nudges,
    observations,
    outbox,
    planning,
    polling,
    polls,
    pool,
    preparation,
    recovery,
    reporting,
    settings,
    stops,
    subscription,
    turns,
    wakeups,
)
from dispatcher.api import client, event_stream, retry, schemas

# For a question whose answer is of no use later than this; the margin of a lease is 8 s.
HASTY_TIMEOUT = 2.0  # seconds


class Messenger(Protocol):
    """What the parts need of Celery."""

    def send_execute(self, run: schemas.FlowRun, claim: claims.NewClaim, pool: str) -> None:
        """Send a claimed run to the workers."""

    def send_poll(self, pool: str) -> None:
        """Ask for a poll now."""

    def send_cancel(self, pool: str) -> None:
        """Ask for a look for runs to cancel now."""

    def send_recover(self, pool: str) -> None:
        """Ask for a look at what nobody takes care of now."""

    def revoke(self, claim_id: UUID) -> None:
        """Discard a claim's task if it waits, wake it if it runs."""


@dataclass(frozen=True)
class Services:
    """Every part of the dispatcher, built from the settings when it is first used."""

    options: settings.Settings
    messenger: Messenger

    @cached_property
    def redis(self) -> redis.Redis:
        """The connection pool to Redis; safe to use after a fork."""
        return connections.connect_redis(self.options)

    @cached_property
    def api(self) -> client.PrefectClient:
        """The Prefect API; safe to use after a fork."""
        return connections.connect_api(self.options)

    @cached_property
    def beats(self) -> beats.Beats:
        """Where beat is alive."""
        return beats.Beats(self.redis)

    @cached_property
    def polls(self) -> polls.Polls:
        """When the pools were polled."""
        return polls.Polls(self.redis)

    @cached_property
    def event_outbox(self) -> outbox.Outbox[schemas.Event]:
        """The events on their way to Prefect."""
        return events.new_outbox(self.api)

    @cached_property
    def log_outbox(self) -> outbox.Outbox[schemas.LogEntry]:
        """The log lines on their way to Prefect."""
        return logs.new_outbox(self.api)

    @cached_property
    def label_outbox(self) -> outbox.Outbox[labels.RunLabels]:
        """The labels on their way to flow runs."""
        return labels.new_outbox(self.api)

    @cached_property
    def worker_events(self) -> events.WorkerEvents:
        """The events of Prefect's workers."""
        return events.WorkerEvents(self.event_outbox.put, worker_name=self.options.worker_name)

    @cached_property
    def wakes(self) -> wakeups.Wakeups:
        """The wake-ups of this process."""
        return wakeups.Wakeups()

    @cached_property
    def stop_requests(self) -> stops.StopRequests:
        """Requests to stop what this process executes."""
        return stops.StopRequests(self.wakes.wake_all)

    @cached_property
    def ledger(self) -> ledger.RedisLedger:
        """The claims."""
        return ledger.RedisLedger(self.redis)

    @cached_property
    def fleet(self) -> fleet.Fleet:
        """The slots."""
        return fleet.Fleet(self.redis)

    @cached_property
    def catalog(self) -> catalog.Catalog:
        """Pools, deployments and flows."""
        return catalog.Catalog(self.api)

    @cached_property
    def reporter(self) -> reporting.Reporter:
        """Final states."""
        hasty = connections.connect_api(
            self.options,
            timeout_seconds=HASTY_TIMEOUT,
            retry_policy=retry.RetryPolicy(max_attempts=1),
        )
        return reporting.Reporter(self.api, hasty=hasty)

    @cached_property
    def preparation(self) -> preparation.Preparation:
        """Executors and job configurations."""
        return preparation.Preparation(
            api=self.api,
            known=self.catalog,
            find_executor=executors.get_executor_class_from_type,
            worker_name=self.options.worker_name,
        )

    @cached_property
    def nudges(self) -> nudges.Nudges:
        """Polls ahead of time."""
        return nudges.Nudges(self.redis, self.messenger.send_poll)

    @cached_property
    def subscription(self) -> subscription.Subscription:
        """What Prefect tells by itself."""
        return subscription.Subscription(
            open_stream=functools.partial(event_stream.open_stream, self.api.transport),
            read_pool=self.api.read_work_pool,
            pools=self.options.work_pools,
            mutex=locks.Locks(self.redis),
            on_due=self.nudges.nudge,
            on_cancelling=self.messenger.send_cancel,
        )

    @cached_property
    def poller(self) -> polling.Poller:
        """The poll task's work."""
        return polling.Poller(
            api=self.api,
            book=self.ledger,
            known=self.catalog,
            order=turns.Turns(api=self.api, redis=self.redis, known=self.catalog),
            workers=self.fleet,
            mutex=locks.Locks(self.redis),
            calls=self.nudges,
            record=self.polls,
            publish=self.messenger.send_execute,
            worker_name=self.options.worker_name,
            find_executor=executors.get_executor_class_from_type,
            work_queues=self.options.work_queues,
            prefetch_seconds=self.options.prefetch_seconds,
        )

    @cached_property
    def execution(self) -> execution.Execution:
        """The execute task's work."""
        return execution.Execution(
            api=self.api,
            book=self.ledger,
            prepare=self.preparation,
            reporter=self.reporter,
            events=self.worker_events,
            put_labels=self.label_outbox.put,
            worker_name=self.options.worker_name,
            wakes=self.wakes,
            requests=self.stop_requests,
            nudge=self.nudges.nudge,
            lease_seconds=self.options.lease_seconds,
            grace_seconds=self.options.grace_seconds,
            reschedule_on_shutdown=self.options.on_shutdown == "reschedule",
        )

    @cached_property
    def canceller(self) -> cancellation.Canceller:
        """The cancel task's work."""
        return cancellation.Canceller(
            api=self.api,
            book=self.ledger,
            mutex=locks.Locks(self.redis),
            reporter=self.reporter,
            revoke=self.messenger.revoke,
            kill=self._kill,
            work_queues=self.options.work_queues,
        )

    @cached_property
    def limits(self) -> planning.Limits:
        """How long claims may stay untouched."""
        return planning.Limits(
            lease_seconds=self.options.lease_seconds,
            infra_retries=self.options.infra_retries,
            recover_interval=self.options.recover_interval,
        )

    @cached_property
    def observations(self) -> observations.Observations:
        """For how long the ledger has been there."""
        return observations.Observations(
            self.redis,
            patience_seconds=self.limits.lost_lease_seconds,
            gap_seconds=self.limits.gap_seconds,
        )

    @cached_property
    def recoverer(self) -> recovery.Recoverer:
        """The recover task's work."""
        return recovery.Recoverer(
            api=self.api,
            book=self.ledger,
            mutex=locks.Locks(self.redis),
            seen=self.observations,
            prepare=self.preparation,
            reporter=self.reporter,
            publish=self.messenger.send_execute,
            revoke=self.messenger.revoke,
            limits=self.limits,
            worker_name=self.options.worker_name,
        )

    @cached_property
    def pool_sync(self) -> pool.PoolSync:
        """The sync task's work."""
        return pool.PoolSync(
            api=self.api,
            worker_name=self.options.worker_name,
            heartbeat_interval=self.options.heartbeat_interval,
            pool_type=self.options.pool_type,
            create_if_not_found=self.options.create_pool_if_not_found,
        )

    def _kill(self, run: schemas.FlowRun, pool_name: str) -> None:
        prepared = self.preparation.prepare(run, pool_name)
        grace_seconds = min(self.options.grace_seconds, cancellation.ORPHAN_GRACE_SECONDS)
        identifier = run.infrastructure_pid or ""
        prepared.kill(identifier, grace_seconds=grace_seconds)
        self.worker_events.cancelled(prepared.pool, prepared.configuration, identifier=identifier)
