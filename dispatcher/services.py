"""Puts the parts together, once for each process."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from functools import cached_property

import redis

import executors
from dispatcher import planning, settings
from dispatcher.execution import (
    claim_execution,
    run_places,
    stop_requests,
    time_limits,
    wake_signals,
)
from dispatcher.ledger import (
    beat_reports,
    fleet,
    keys,
    last_polls,
    locks,
    poll_nudges,
    recovery_memory,
    redis_connection,
    redis_ledger,
    rounds,
    served_pools,
    turns_taken,
)
from dispatcher.polling import fairness, late_runs, places, poller, subscription
from dispatcher.prefect_api import api_connection, catalog, client, event_stream, retry, schemas
from dispatcher.preparation import job_preparation, publishing
from dispatcher.reporting import outbox, run_labels, run_logs, state_reporter, worker_events
from dispatcher.upkeep import (
    cancellation,
    orphan_search,
    pool_sync,
    recovery,
    revoked_runs,
    slot_watch,
)

# For a question whose answer is of no use later than this; the margin of a lease is 8 s.
HASTY_TIMEOUT = 2.0  # seconds


@dataclass(frozen=True)
class Services:
    """Every part of the dispatcher, built from the settings when it is first used."""

    options: settings.Settings
    messenger: publishing.Messenger

    @cached_property
    def redis(self) -> redis.Redis:
        """The connection pool to Redis; safe to use after a fork."""
        return redis_connection.connect_redis(
            self.options.redis_url.get_secret_value(), prefix=self.prefix
        )

    @property
    def prefix(self) -> str:
        """What the ledger's keys begin with."""
        return keys.prefix_of(self.options.namespace)

    @cached_property
    def api(self) -> client.PrefectClient:
        """The Prefect API; safe to use after a fork."""
        return api_connection.connect_api(self.options)

    @cached_property
    def beats(self) -> beat_reports.BeatReports:
        """Where beat is alive."""
        return beat_reports.BeatReports(self.redis, prefix=self.prefix)

    @cached_property
    def polls(self) -> last_polls.LastPolls:
        """When the pools were polled."""
        return last_polls.LastPolls(self.redis, prefix=self.prefix)

    @cached_property
    def rounds(self) -> rounds.Rounds:
        """What has been done of late."""
        return rounds.Rounds(self.redis, prefix=self.prefix)

    @cached_property
    def event_outbox(self) -> outbox.Outbox[schemas.Event]:
        """The events on their way to Prefect."""
        return worker_events.new_outbox(self.api)

    @cached_property
    def log_outbox(self) -> outbox.Outbox[schemas.LogEntry]:
        """The log lines on their way to Prefect."""
        return run_logs.new_outbox(self.api)

    @cached_property
    def label_outbox(self) -> outbox.Outbox[run_labels.RunLabels]:
        """The labels on their way to flow runs."""
        return run_labels.new_outbox(self.api)

    @cached_property
    def worker_events(self) -> worker_events.WorkerEvents:
        """The events of Prefect's workers."""
        return worker_events.WorkerEvents(
            self.event_outbox.put, worker_name=self.options.worker_name
        )

    @cached_property
    def wakes(self) -> wake_signals.Wakeups:
        """The wake-ups of this process."""
        return wake_signals.Wakeups()

    @cached_property
    def stop_requests(self) -> stop_requests.StopRequests:
        """Requests to stop what this process executes."""
        return stop_requests.StopRequests(self.wakes.wake_all)

    @cached_property
    def run_places(self) -> run_places.RunPlaces:
        """How many runs this worker executes at once."""
        return run_places.RunPlaces()

    @cached_property
    def time_limits(self) -> time_limits.TimeLimits:
        """Celery's limits for this worker's tasks."""
        return time_limits.TimeLimits(self.options.grace_seconds)

    @cached_property
    def ledger(self) -> redis_ledger.RedisLedger:
        """The claims."""
        return redis_ledger.RedisLedger(self.redis, prefix=self.prefix)

    @cached_property
    def fleet(self) -> fleet.Fleet:
        """The slots."""
        return fleet.Fleet(self.redis, prefix=self.prefix)

    @cached_property
    def served_pools(self) -> served_pools.ServedPools:
        """The pools of the whole fleet."""
        own = self.options
        return served_pools.ServedPools(self.fleet, own.work_pools, own.work_queues)

    @cached_property
    def catalog(self) -> catalog.Catalog:
        """Pools, deployments and flows."""
        return catalog.Catalog(self.api)

    @cached_property
    def reporter(self) -> state_reporter.Reporter:
        """Final states."""
        hasty = api_connection.connect_api(
            self.options,
            timeout_seconds=HASTY_TIMEOUT,
            retry_policy=retry.RetryPolicy(max_attempts=1),
        )
        return state_reporter.Reporter(self.api, hasty=hasty, now=self.api.now)

    @cached_property
    def preparation(self) -> job_preparation.Preparation:
        """Executors and job configurations."""
        return job_preparation.Preparation(
            api=self.api,
            known=self.catalog,
            find_executor=executors.get_executor_class_from_type,
            worker_name=self.options.worker_name,
            pool_type=self.options.pool_type,
        )

    @cached_property
    def publisher(self) -> publishing.Publisher:
        """Claimed runs on their way to the workers."""
        ui_url = api_connection.ui_url(self.options)
        return publishing.Publisher(self.messenger, self.catalog, ui_url)

    @cached_property
    def nudges(self) -> poll_nudges.PollNudges:
        """Polls ahead of time."""
        return poll_nudges.PollNudges(self.redis, self.messenger.send_poll, prefix=self.prefix)

    @cached_property
    def subscriptions(self) -> tuple[subscription.Subscription, ...]:
        """What Prefect tells by itself."""
        pools = self.served_pools.live
        listen = functools.partial(
            subscription.Subscription,
            open_stream=functools.partial(event_stream.open_stream, self.api.transport),
            pools=pools,
            mutex=locks.Locks(self.redis, prefix=self.prefix),
        )
        due = subscription.DueRuns(pools, self.api.read_work_pool)
        cancels = subscription.Cancels(pools, self.ledger.get)
        return listen(due, tell=self.nudges.nudge), listen(cancels, tell=self._hasten_cancel)

    @cached_property
    def places(self) -> places.Places:
        """Free slots for the runs of a pool."""
        shared = self.options.work_queues
        return places.Places(self.api, self.catalog, self.ledger, self.fleet, shared)

    @cached_property
    def poller(self) -> poller.Poller:
        """The poll task's work."""
        return poller.Poller(
            api=self.api,
            book=self.ledger,
            known=self.catalog,
            order=fairness.Turns(
                self.api, turns_taken.TurnsTaken(self.redis, prefix=self.prefix), self.catalog
            ),
            late=late_runs.LateRuns(self.api, self.catalog),
            slots=self.places,
            mutex=locks.Locks(self.redis, prefix=self.prefix),
            calls=self.nudges,
            record=self.polls,
            publish=self.publisher.publish,
            worker_name=self.options.worker_name,
            find_executor=executors.get_executor_class_from_type,
            prefetch_seconds=self.options.prefetch_seconds,
            now=self.api.now,
        )

    @cached_property
    def execution(self) -> claim_execution.Execution:
        """The execute task's work."""
        return claim_execution.Execution(
            api=self.api,
            book=self.ledger,
            prepare=self.preparation,
            reporter=self.reporter,
            events=self.worker_events,
            put_labels=self.label_outbox.put,
            worker_name=self.options.worker_name,
            wakes=self.wakes,
            requests=self.stop_requests,
            limits=self.time_limits,
            nudge=self.nudges.slot_freed,
            pools=self.options.work_pools,
            lease_seconds=self.options.lease_seconds,
            grace_seconds=self.options.grace_seconds,
            infra_retries=self.options.infra_retries,
            reschedule_on_shutdown=self.options.on_shutdown == "reschedule",
        )

    @cached_property
    def canceller(self) -> cancellation.Canceller:
        """The cancel task's work."""
        return cancellation.Canceller(
            api=self.api,
            book=self.ledger,
            mutex=locks.Locks(self.redis, prefix=self.prefix),
            turns=self.rounds,
            reporter=self.reporter,
            revoke=self.messenger.revoke,
            kill=self._kill,
            queues=self.served_pools.queues,
            round_seconds=rounds.SHARE * self.options.cancel_interval,
        )

    @cached_property
    def limits(self) -> planning.Limits:
        """How long claims may stay untouched."""
        own = self.options
        return planning.Limits(own.lease_seconds, own.infra_retries, own.recover_interval)

    @cached_property
    def observations(self) -> recovery_memory.RecoveryMemory:
        """For how long the ledger has been there."""
        return recovery_memory.RecoveryMemory(
            self.redis,
            prefix=self.prefix,
            patience_seconds=self.limits.lost_lease_seconds,
            gap_seconds=self.limits.gap_seconds,
        )

    @cached_property
    def orphan_search(self) -> orphan_search.OrphanSearch:
        """Runs without a claim."""
        return orphan_search.OrphanSearch(
            api=self.api,
            book=self.ledger,
            seen=self.observations,
            turns=self.rounds,
            pools=self.served_pools.names,
            worker_name=self.options.worker_name,
        )

    @cached_property
    def recoverer(self) -> recovery.Recoverer:
        """The recover task's work."""
        return recovery.Recoverer(
            api=self.api,
            book=self.ledger,
            mutex=locks.Locks(self.redis, prefix=self.prefix),
            seen=self.observations,
            prepare=self.preparation,
            reporter=self.reporter,
            publish=self.publisher.publish,
            choose=self.places.seat_for,
            alive=self.fleet.names,
            revoke=self.messenger.revoke,
            tell=self.messenger.tell_end,
            limits=self.limits,
            search=self.orphan_search,
            turns=self.rounds,
            pools=self.served_pools.names,
            round_seconds=rounds.SHARE * self.options.recover_interval,
        )

    @cached_property
    def revoked_runs(self) -> revoked_runs.RevokedRuns:
        """What users revoke through Celery."""
        return revoked_runs.RevokedRuns(
            api=self.api,
            book=self.ledger,
            mutex=locks.Locks(self.redis, prefix=self.prefix),
            hasten=self._hasten_cancel,
        )

    @cached_property
    def slot_watch(self) -> slot_watch.SlotWatch:
        """Whether anything can go on."""
        return slot_watch.SlotWatch(
            api=self.api,
            book=self.ledger,
            workers=self.fleet,
            turns=self.rounds,
            pools=self.served_pools.names,
        )

    @cached_property
    def pool_sync(self) -> pool_sync.PoolSync:
        """The sync task's work."""
        return pool_sync.PoolSync(
            api=self.api,
            worker_name=self.options.worker_name,
            heartbeat_interval=self.options.heartbeat_interval,
            pool_type=self.options.pool_type,
            create_if_not_found=self.options.create_pool_if_not_found,
        )

    def hasten_recovery(self, pool: str) -> None:
        """Have somebody look now at what nobody takes care of."""
        self.recoverer.hasten()
        self.messenger.send_recover(pool)

    def _hasten_cancel(self, pool: str) -> None:
        self.canceller.hasten()
        self.messenger.send_cancel(pool)

    def _kill(self, run: schemas.FlowRun, pool_name: str) -> None:
        prepared = self.preparation.prepare_kill(run, pool_name)
        grace_seconds = min(self.options.grace_seconds, cancellation.ORPHAN_GRACE_SECONDS)
        identifier = run.infrastructure_pid or ""
        prepared.kill(identifier, grace_seconds=grace_seconds)
        self.worker_events.cancelled(prepared.pool, prepared.configuration, identifier=identifier)
