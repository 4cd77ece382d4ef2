"""The recover task: nothing stays claimed, Pending or Running without someone who owns it."""

from __future__ import annotations

import contextlib
import itertools
import logging
from collections.abc import Callable, Collection, Iterator
from uuid import UUID

from kombu import exceptions
from redis import RedisError

from dispatcher import claims, errors, locks, observations, planning, preparation, reporting
from dispatcher.api import client, schemas
from executors import errors as executor_errors

# A second tick meanwhile does no harm, so the lock need not outlive one that was killed.
LOCK_SECONDS = 15.0
# A foreign run stays foreign in its state, so its history is not read at every tick.
MAX_REMEMBERED = 10_000
State = schemas.StateType
HELD = claims.Stage.HELD
ANY_SLOTS = 1_000_000

_ADOPTABLE = frozenset({State.PENDING, State.RUNNING})

# With these nothing can be done for any run.
_AWAY = (
    errors.ApiUnreachable,
    errors.AuthenticationFailed,
    RedisError,
    exceptions.OperationalError,
)

logger = logging.getLogger(__name__)

Publish = Callable[[schemas.FlowRun, claims.NewClaim, str], None]
Revoke = Callable[[UUID], None]


class Recoverer:
    """Heals what a dead worker, poller or Redis left behind.

    Every step may be repeated, and may meet a holder that is alive after all: then the ledger
    refuses it and nothing is written.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        mutex: locks.Locks,
        seen: observations.Observations,
        prepare: preparation.Preparation,
        reporter: reporting.Reporter,
        publish: Publish,
        revoke: Revoke,
        limits: planning.Limits,
        worker_name: str,
    ) -> None:
        self._api = api
        self._ledger = book
        self._locks = mutex
        self._observations = seen
        self._preparation = prepare
        self._reporter = reporter
        self._publish = publish
        self._revoke = revoke
        self._limits = limits
        self._worker_name = worker_name
        self._ours: dict[UUID, bool] = {}

    def recover(self, pool: str) -> int:
        """Look after one pool; return how many claims and runs needed it.

        Raises:
            errors.ApiError: the API could not be asked; the next tick goes on.
        """
        with self._locks.hold(f"recover:{pool}", lease_seconds=LOCK_SECONDS) as held:
            if not held:
                return 0
            steady = self._observations.is_steady()
            open_claims = [claim for claim in self._ledger.open_claims() if claim.pool == pool]
            actions = planning.plan_recovery(
                open_claims, now=self._ledger.now(), limits=self._limits, leases_count=steady
            )
            for action in actions:
                with _one_of_many(action.claim.flow_run_id):
                    self._act(action)
            self._stop_unwanted(open_claims)
            return len(actions) + self._adopt_orphans(pool, steady=steady)

    def _act(self, action: planning.Action) -> None:
        claim = action.claim
        run = self._reporter.read(claim.flow_run_id)
        match action:
            case planning.Settle():
                self._settle(claim, run)
            case planning.Resend():
                self._resend(claim, run)
            case planning.TakeBack():
                self._take_back(claim, run)
            case planning.Deliver():
                self._deliver(claim)

    def _settle(self, claim: claims.Claim, run: schemas.FlowRun | None) -> None:
        if run is None or not _is_pending_of(claim, run):
            self._expire(claim)
        elif self._ledger.accept(claim.new):
            logger.info("flow run %s was claimed by a poll that is gone; sent now", run.id)
            self._publish(run, claim.new, claim.pool)

    def _resend(self, claim: claims.Claim, run: schemas.FlowRun | None) -> None:
        if run is None or not (claim.adopts or _is_pending_of(claim, run)):
            self._take_back(claim, run)
        elif self._ledger.resend(claim.new):
            logger.warning("flow run %s did not start in time; its task is sent again", run.id)
            self._publish(run, claim.new, claim.pool)

    def _take_back(self, claim: claims.Claim, run: schemas.FlowRun | None) -> None:
        if self._expire(claim) and run is not None and planning.concerns(claim, run.state):
            self._decide(run, claim.pool, attempt=claim.attempt, loss=planning.describe_loss(claim))

    def _expire(self, claim: claims.Claim) -> bool:
        untouched = self._limits.untouched(claim.stage)
        return self._ledger.expire(claim, untouched_seconds=untouched)

    def _deliver(self, claim: claims.Claim) -> None:
        outcome = planning.outcome_from_text(claim.outcome)
        said = self._reporter.conclude(claim.flow_run_id, outcome)
        logger.info("flow run %s: its end is reported now: %s", claim.flow_run_id, said)
        self._ledger.close(claim.new, fence=claim.fence)

    def _stop_unwanted(self, open_claims: Collection[claims.Claim]) -> None:
        """Have the jobs stopped whose runs were cancelled or deleted over their holders' heads.

        Prefect's server does so to a run that has been Cancelling for long, and so may a user.
        """
        held = {claim.flow_run_id: claim for claim in open_claims if claim.stage is HELD}
        for chunk in _chunks(list(held), client.PAGE_LIMIT):
            runs = self._api.read_flow_runs(schemas.FlowRunFilter(ids=chunk))
            states = {run.id: run.state for run in runs}
            for run_id in planning.plan_unwanted(chunk, states):
                logger.warning("flow run %s is not to run any more; stopping its job", run_id)
                self._ledger.request_cancel(run_id)
                self._revoke(held[run_id].claim_id)

    def _adopt_orphans(self, pool: str, *, steady: bool) -> int:
        unfinished = list(self._unfinished(pool))
        # Read after the runs: a claim is there before its run is Pending.
        claimed = {claim.flow_run_id for claim in self._ledger.open_claims()}
        candidates = [run for run in unfinished if run.id not in claimed]
        lost = self._observations.unclaimed(pool, [run.id for run in candidates])
        if not steady:
            return 0
        orphans = [run for run in candidates if run.id in lost and self._is_ours(run)]
        for run in orphans:
            with _one_of_many(run.id):
                self._decide(run, pool, attempt=1, loss=planning.UNCLAIMED)
        return len(orphans)

    def _unfinished(self, pool: str) -> Iterator[schemas.FlowRun]:
        selected = schemas.FlowRunFilter(
            state_types=[State.PENDING, State.RUNNING],
            state_names=["AwaitingRetry"],
            states_any=True,
            work_pool_names=[pool],
        )
        for offset in itertools.count(0, client.PAGE_LIMIT):
            page = self._api.read_flow_runs(selected, offset=offset)
            yield from (run for run in page if planning.is_unfinished(run))
            if len(page) < client.PAGE_LIMIT:
                return

    def _is_ours(self, run: schemas.FlowRun) -> bool:
        """Whether this dispatcher, under whichever claim, made the run Pending.

        Other workers may serve the same pool; what they have claimed is theirs for good.
        """
        state_id = run.state_id or run.id
        if state_id not in self._ours:
            if len(self._ours) >= MAX_REMEMBERED:
                self._ours.clear()
            self._ours[state_id] = planning.last_pending_made_by(
                self._api.read_flow_run_states(run.id), self._worker_name
            )
        return self._ours[state_id]

    def _decide(self, run: schemas.FlowRun, pool: str, *, attempt: int, loss: str) -> None:
        if self._hand_over(run, pool):
            return
        retries = self._preparation.infra_retries(run)
        self._kill_leftover(run, pool)
        verdict = planning.decide_lost(
            run,
            attempt=attempt,
            retries=self._limits.infra_retries if retries is None else retries,
            opted_in=retries is not None,
            loss=loss,
        )
        if verdict is not None:
            self._reporter.carry_out(run.id, run, verdict)

    def _hand_over(self, run: schemas.FlowRun, pool: str) -> bool:
        """Have a job that has outlived its worker adopted by another; whether there is one."""
        if run.state is None or run.state.type not in _ADOPTABLE or not self._lives(run, pool):
            return False
        adoption = claims.new_adoption()
        claim = claims.NewClaim(run.id, adoption)
        # Whatever slots there are: the job uses what it uses already.
        if self._ledger.open([claim], pool=pool, transition_id=adoption, slots=ANY_SLOTS):
            self._ledger.accept(claim)
            logger.warning("flow run %s has lost its worker but not its job", run.id)
            self._publish(run, claim, pool)
        return True

    def _lives(self, run: schemas.FlowRun, pool: str) -> bool:
        try:
            return self._preparation.prepare(run, pool).find(run) is not None
        except (executor_errors.ExecutorError, errors.ObjectNotFound) as error:
            logger.debug("flow run %s: whether its job lives is unknown: %s", run.id, error)
        except _AWAY:
            raise
        except Exception:
            # Whatever an executor raises, the run must not stay as it is for ever.
            logger.exception("flow run %s: whether its job lives is unknown", run.id)
        return False

    def _kill_leftover(self, run: schemas.FlowRun, pool: str) -> None:
        """Kill what is left of a lost job, where that can be done from here."""
        if run.infrastructure_pid is None:
            return
        try:
            self._preparation.prepare(run, pool).kill(run.infrastructure_pid, grace_seconds=0.0)
        except (executor_errors.ExecutorError, errors.ObjectNotFound, NotImplementedError) as error:
            logger.debug("flow run %s: nothing of it was killed: %s", run.id, error)
        except _AWAY:
            raise
        except Exception:
            # Whatever an executor raises, the run must not stay as it is for ever.
            logger.exception("flow run %s: what is left of it could not be killed", run.id)


@contextlib.contextmanager
def _one_of_many(flow_run_id: UUID) -> Iterator[None]:
    """An error boundary: what goes wrong with one run keeps no other from being recovered.

    Where Redis, the broker or the API is away, though, none can be.
    """
    try:
        yield
    except _AWAY:
        raise
    except errors.ApiError as error:
        logger.error("flow run %s could not be recovered yet: %s", flow_run_id, error)
    except Exception:
        # An outcome of another version, a stranger's executor: the next tick tries again.
        logger.exception("flow run %s could not be recovered yet", flow_run_id)


def _is_pending_of(claim: claims.Claim, run: schemas.FlowRun) -> bool:
    return planning.owns_pending(run.state, transition_id=claim.transition_id)


def _chunks(run_ids: list[UUID], size: int) -> Iterator[list[UUID]]:
    for start in range(0, len(run_ids), size):
        yield run_ids[start : start + size]
