"""Finding runs that have lost both their worker and their claim."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from uuid import UUID

from dispatcher import planning
from dispatcher.ledger import claims, recovery_memory, rounds
from dispatcher.prefect_api import client, schemas

# A foreign run stays foreign in its state, so its history is not read at every look.
MAX_REMEMBERED = 10_000
# Runs whose work queue was deleted are found only among those of all pools of the server.
ADRIFT_SECONDS = 10.0  # between two looks, for each page that is read

State = schemas.StateType

SCOPE = "orphans"
ADRIFT_SCOPE = "orphans:adrift"

OF_POOLS = (State.PENDING, State.RUNNING, State.PAUSED)
# Of a run that is in no pool any more, nobody else finds that it is to be cancelled.
ADRIFT = (*OF_POOLS, State.CANCELLING)


class OrphanSearch:
    """Looks for unfinished runs that this dispatcher made Pending and that have no claim.

    Prefect tells which runs are unfinished, in ``pools`` and in none at all, and by a run's history
    which of them a dispatcher of ``worker_name`` started. ``seen`` remembers for how long a run has
    had no claim, since a holder that is alive puts its claim back.
    """

    def __init__(
        self,
        *,
        api: client.PrefectClient,
        book: claims.Ledger,
        seen: recovery_memory.RecoveryMemory,
        turns: rounds.Rounds,
        pools: Callable[[], Collection[str]],
        worker_name: str,
    ) -> None:
        self._api = api
        self._ledger = book
        self._observations = seen
        self._rounds = turns
        self._pools = pools
        self._worker_name = worker_name
        self._ours: dict[UUID, bool] = {}

    def find(self, claimed: Collection[UUID]) -> list[schemas.FlowRun]:
        """Return the runs that have been orphans for long.

        ``claimed`` had a claim a moment ago, which spares asking for it.

        Raises:
            errors.ApiError: the API could not be asked.
        """
        return [
            *self._long_unclaimed(self._of_pools(), claimed, SCOPE),
            *self._long_adrift(claimed),
        ]

    def _long_adrift(self, claimed: Collection[UUID]) -> list[schemas.FlowRun]:
        scope = ADRIFT_SCOPE
        if not self._rounds.begin(scope, seconds=ADRIFT_SECONDS):
            return []
        pages = list(self._api.flow_run_pages(_unfinished(ADRIFT)))
        if len(pages) > 1:
            self._rounds.postpone(scope, seconds=ADRIFT_SECONDS * len(pages))
        adrift = (run for page in pages for run in page if _is_adrift(run))
        return self._long_unclaimed(adrift, claimed, scope)

    def _long_unclaimed(
        self, runs: Iterator[schemas.FlowRun], claimed: Collection[UUID], scope: str
    ) -> list[schemas.FlowRun]:
        unfinished = [run for run in runs if run.id not in claimed]
        # Read after the runs: a claim is there before its run is Pending.
        candidates = {run.id: run for run in unfinished if not self._has_claim(run.id)}
        lost = self._observations.unclaimed(scope, list(candidates))
        return [candidates[run_id] for run_id in lost if self._is_ours(candidates[run_id])]

    def _of_pools(self) -> Iterator[schemas.FlowRun]:
        for page in self._api.flow_run_pages(_unfinished(OF_POOLS, self._pools())):
            yield from (run for run in page if planning.is_unfinished(run))

    def _has_claim(self, run_id: UUID) -> bool:
        claim = self._ledger.get(run_id)
        return claim is not None and claim.stage is not claims.Stage.CLOSED

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


def _is_adrift(run: schemas.FlowRun) -> bool:
    is_cancelling = run.state is not None and run.state.is_cancelling
    return run.work_pool_name is None and (planning.is_unfinished(run) or is_cancelling)


def _unfinished(states: Collection[State], pools: Collection[str] = ()) -> schemas.FlowRunFilter:
    return schemas.FlowRunFilter(
        state_types=states, state_names=["AwaitingRetry"], states_any=True, work_pool_names=pools
    )
