"""The recover task: nothing stays claimed, Pending or Running without someone who owns it."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Collection, Iterator
from uuid import UUID

from kombu import exceptions
from redis import RedisError

from dispatcher import errors, planning
from dispatcher.ledger import claims, locks, recovery_memory, rounds
from dispatcher.prefect_api import client, schemas
from dispatcher.preparation import job_preparation
from dispatcher.reporting import state_reporter
from dispatcher.upkeep import orphan_search
from executors import errors as executor_errors

# A second tick meanwhile does no harm, so the lock need not outlive one that was killed.
LOCK_SECONDS = 15.0
State = schemas.StateType
HELD = claims.Stage.HELD
ANY_SLOTS = 1_000_000
ROUND = "recover"

_ADOPTABLE = frozenset({State.PENDING, State.RUNNING})

# With these nothing can be done for any run.
_AWAY = (
    errors.ApiUnreachable,
    errors.AuthenticationFailed,
    RedisError,
    exceptions.OperationalError,
)

logger = logging.getLogger(__name__)

Publish = Callable[[schemas.FlowRun, claims.NewClaim, str, int, str], None]
# Where a run of a pool can be executed; ``None`` if nobody serves it.
Choose = Callable[[schemas.FlowRun, str], planning.Seat | None]
Tell = Callable[[UUID, str], None]
Revoke = Callable[[UUID], None]


class Recoverer:
    """Heals what a dead worker, poller or Redis left behind.

    Every step may be repeated, and may meet a holder that is alive after all: then the ledger
    refuses it and nothing is written. However many pools have a tick, one of them looks after all
    in ``round_seconds``.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        mutex: locks.Locks,
        seen: recovery_memory.RecoveryMemory,
        prepare: job_preparation.Preparation,
        reporter: state_reporter.Reporter,
        publish: Publish,
        choose: Choose,
        alive: Callable[[], Collection[str]],
        revoke: Revoke,
        tell: Tell,
        limits: planning.Limits,
        search: orphan_search.OrphanSearch,
        turns: rounds.Rounds,
        pools: Callable[[], Collection[str]],
        round_seconds: float = 0.0,
    ) -> None:
        self._api = api
        self._ledger = book
        self._locks = mutex
        self._observations = seen
        self._preparation = prepare
        self._reporter = reporter
        self._publish = publish
        self._choose = choose
        self._alive = alive
        self._revoke = revoke
        self._tell = tell
        self._limits = limits
        self._search = search
        self._rounds = turns
        self._pools = pools
        self._round_seconds = round_seconds
        self._round = ROUND

    def recover(self) -> int:
        """Look after the pools; return how many claims and runs needed it.

        Raises:
            errors.ApiError: the API could not be asked; the next tick goes on.
        """
        if not self._rounds.begin(self._round, seconds=self._round_seconds):
            return 0
        with self._locks.hold(self._round, lease_seconds=LOCK_SECONDS) as held:
            if not held:
                return 0
            steady = self._observations.is_steady()
            pools = frozenset(self._pools())
            open_claims = [claim for claim in self._ledger.open_claims() if claim.pool in pools]
            actions = planning.plan_recovery(
                open_claims,
                now=self._ledger.now(),
                limits=self._limits,
                leases_count=steady,
                alive=self._alive(),
            )
            for action in actions:
                with _one_of_many(action.claim.flow_run_id):
                    self._act(action)
            self._stop_unwanted(open_claims)
            claimed = {claim.flow_run_id for claim in open_claims}
            return len(actions) + self._adopt_orphans(claimed, steady=steady)

    def hasten(self) -> None:
        """Let the next tick look at once."""
        self._rounds.hasten(self._round)

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
            self._publish(run, claim.new, claim.pool, claim.attempt, claim.meant_for)

    def _resend(self, claim: claims.Claim, run: schemas.FlowRun | None) -> None:
        if run is None or not (claim.adopts or _is_pending_of(claim, run)):
            self._take_back(claim, run)
            return
        seat = self._choose(run, claim.pool)
        if seat is None:
            # Nobody to send it to: it is put back, for whoever serves its pool next.
            self._take_back(claim, run)
        elif self._ledger.resend(claim.new, node=seat.node):
            logger.warning("flow run %s did not start in time; its task is sent again", run.id)
            self._publish(run, claim.new, claim.pool, claim.attempt, seat.node)

    def _take_back(self, claim: claims.Claim, run: schemas.FlowRun | None) -> None:
        if not self._expire(claim) or run is None or not planning.concerns(claim, run.state):
            return
        loss = planning.describe_loss(claim)
        end = self._decide(run, claim.pool, attempt=claim.attempt, loss=loss)
        if claim.stage is HELD:
            # The worker that would have said so is gone.
            self._tell(claim.claim_id, end)

    def _expire(self, claim: claims.Claim) -> bool:
        untouched = self._limits.untouched(claim.stage)
        return self._ledger.expire(claim, untouched_seconds=untouched)

    def _deliver(self, claim: claims.Claim) -> None:
        outcome = planning.outcome_from_text(claim.outcome)
        said = self._reporter.conclude(claim.flow_run_id, outcome)
        logger.info("flow run %s: its end is reported now: %s", claim.flow_run_id, said)
        self._ledger.close(claim.new, fence=claim.fence)
        self._tell(claim.claim_id, said)

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

    def _adopt_orphans(self, claimed: Collection[UUID], *, steady: bool) -> int:
        """Look after runs that have no claim; ``claimed`` had one when this tick began."""
        orphans = self._search.find(claimed)
        if not steady:
            return 0
        for run in orphans:
            with _one_of_many(run.id):
                self._decide(run, run.work_pool_name or "", attempt=1, loss=planning.UNCLAIMED)
        return len(orphans)

    def _decide(self, run: schemas.FlowRun, pool: str, *, attempt: int, loss: str) -> str:
        """Decide about a run that has lost its claim; return what is to be told of that claim."""
        if self._hand_over(run, pool):
            return f"{planning.PUT_BACK}: {loss} Its job goes on."
        retries = self._preparation.infra_retries(run)
        self._kill_leftover(run, pool)
        verdict = planning.decide_lost(
            run,
            attempt=attempt,
            retries=self._limits.infra_retries if retries is None else retries,
            opted_in=retries is not None,
            loss=loss,
        )
        if verdict is None:
            return str(run.state.type) if run.state else planning.MOVED_ON
        return f"{self._reporter.carry_out(run.id, run, verdict)}: {verdict.message}"

    def _hand_over(self, run: schemas.FlowRun, pool: str) -> bool:
        """Have a job that has outlived its worker adopted by another; whether there is one."""
        if run.state is None or run.state.type not in _ADOPTABLE or not self._lives(run, pool):
            return False
        adoption = claims.new_adoption()
        claim = claims.NewClaim(run.id, adoption)
        seat = self._choose(run, pool) or planning.Seat(claims.ANYBODY)
        # Whatever slots there are: the job uses what it uses already.
        if self._ledger.open(
            [claim],
            pool=pool,
            transition_id=adoption,
            slots=ANY_SLOTS,
            node=seat.node,
            weight=seat.weight,
        ):
            attempt = self._ledger.accept(claim)
            logger.warning("flow run %s has lost its worker but not its job", run.id)
            self._publish(run, claim, pool, attempt, seat.node)
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
            self._preparation.prepare_kill(run, pool).kill(
                run.infrastructure_pid, grace_seconds=0.0
            )
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
