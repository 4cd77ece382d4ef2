"""The runs: every kind that can be told apart by how it ends, submitted and cancelled all along."""

from __future__ import annotations

import contextlib
import itertools
import random
import shlex
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from uuid import UUID

from dispatcher import errors
from dispatcher.prefect_api import retry, schemas
from dispatcher.testing import prefect_objects
from tests.chaos import meddling, records
from tests.chaos import world as worlds

FLOWS = Path(__file__).parent / "flows"
ENGINE = FLOWS / "engine.py"
ROOT = Path(__file__).parents[2]

# Who waits for a server that is away does not see to the other runs.
HASTY = retry.RetryPolicy(max_attempts=3, budget_seconds=3.0)
LOOK_SECONDS = 0.5
CHUNK = 100
REST_SECONDS = 1.0  # after a request that failed

Interference = Literal["cancel-running", "cancel-soon", "delete-running", "meddle", "resume"]
# A run whose pool has been deleted before it was started will never be.
MEDDLE_SECONDS = 20.0


@dataclass(frozen=True)
class Kind:
    """One kind of run, and how often it comes in comparison.

    ``arguments`` are the stand-in engine's; with ``flow`` it is Prefect's own, whose ``child`` is
    the kind of run that it starts.
    """

    name: str
    weight: int
    arguments: str = ""
    flow: str = ""
    seconds: float = 0.0
    infra_retries: int | None = None
    concurrency_limit: int | None = None
    interference: Interference | None = None
    child: str = ""

    @property
    def leaves_escapee(self) -> bool:
        """Whether its flow starts a process that leaves the session."""
        return "escapee" in self.arguments + self.flow

    @property
    def ends(self) -> str:
        """The type of the state that it ends in unless it is hit; empty if that is open."""
        if self.interference is not None or self.child:
            return ""
        if "--end" not in self.arguments:
            return "COMPLETED"
        return "FAILED" if "failed" in self.arguments else "CRASHED"


KINDS = (
    Kind("short", 10),
    Kind("long", 5, "--seconds 12"),
    Kind("long, opted in", 5, "--seconds 8", infra_retries=3),
    Kind("fails", 3, "--end failed"),
    Kind("exits", 2, "--end exit"),
    Kind("kills itself", 2, "--end kill --escapee"),
    Kind("cannot start", 1, "--end unstartable"),
    Kind("limited", 4, "--seconds 2", concurrency_limit=2),
    Kind("limited, opted in", 2, "--seconds 4", concurrency_limit=1, infra_retries=3),
    Kind("cancelled", 4, "--seconds 60", interference="cancel-running"),
    Kind("cancelled with escapee", 4, "--seconds 60 --escapee", interference="cancel-running"),
    Kind("cancelled, stubborn", 3, "--seconds 60 --stubborn", interference="cancel-running"),
    Kind("cancelled soon", 5, "--seconds 5", interference="cancel-soon"),
    Kind(
        "cancelled, opted in",
        3,
        "--seconds 60",
        infra_retries=3,
        interference="cancel-running",
    ),
    Kind("deleted", 2, "--seconds 60", interference="delete-running"),
    Kind("meddled with", 5, "--seconds 60", interference="meddle"),
    Kind("meddled with, escapee", 2, "--seconds 60 --escapee", interference="meddle"),
    Kind("meddled with, opted in", 2, "--seconds 60", infra_retries=3, interference="meddle"),
    Kind("flow, paused", 2, flow="pauses", seconds=0.5, interference="resume"),
    Kind(
        "flow, paused, opted in",
        1,
        flow="pauses",
        seconds=0.5,
        infra_retries=3,
        interference="resume",
    ),
    Kind("flow, parent", 2, flow="starts_child", seconds=30.0, child="short"),
    Kind("flow", 2, flow="works", seconds=0.5),
    Kind("flow, opted in", 1, flow="works", seconds=4.0, infra_retries=3),
    Kind("flow, retried", 1, flow="works_at_second_try", seconds=0.5),
    Kind("flow, cancelled", 2, flow="works", seconds=60.0, interference="cancel-running"),
    Kind(
        "flow, cancelled with escapee",
        1,
        flow="works_with_escapee",
        seconds=60.0,
        interference="cancel-running",
    ),
)
# So many of them at a time: started cold they cost seconds of CPU each.
COLD_ENGINES_AT_ONCE = 1
WARM_ENGINES_AT_ONCE = 4

UNFINISHED = [
    schemas.StateType.SCHEDULED,
    schemas.StateType.PENDING,
    schemas.StateType.RUNNING,
    schemas.StateType.CANCELLING,
    schemas.StateType.PAUSED,
]


@dataclass
class Submitted:
    """A run that is not over, and when it is to be interfered with.

    ``target`` is what users may still meddle with.
    """

    run_id: UUID
    kind: Kind
    due: float | None
    target: meddling.Target | None = None
    begun: bool = False


class Workload:
    """Keeps a number of runs going, from a thread of its own.

    ``again_after_shutdown``: workers that are told to stop put back what has begun.
    """

    def __init__(
        self,
        world: worlds.World,
        *,
        seed: int,
        at_once: int,
        again_after_shutdown: bool,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._world = world
        self._dice = random.Random(f"runs {seed}")
        self._at_once = at_once
        self._again = again_after_shutdown
        cold = world.start == "cold"
        self._engines_at_once = COLD_ENGINES_AT_ONCE if cold else WARM_ENGINES_AT_ONCE
        self._monotonic = monotonic
        # What has left its session can be killed on its own host alone.
        self._kinds = [kind for kind in KINDS if not (world.hosts and kind.leaves_escapee)]
        self._deployments: dict[str, schemas.Deployment] = {}
        self._open: dict[UUID, Submitted] = {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="workload")
        self.deleted: dict[UUID, Kind] = {}
        self.interferences: Counter[str] = Counter()
        self._targets: dict[UUID, Kind] = {}

    def __enter__(self) -> Workload:
        pools = itertools.cycle(self._world.stack.pools[:-1])
        for kind, pool in zip(self._kinds, pools, strict=False):
            self._deployments[kind.name] = self._deploy(kind, pool=pool)
        self._thread.start()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        self.submit_no_more()
        self._stopping.set()
        self._thread.join()

    def submit_no_more(self) -> None:
        """From now on only what is there is looked after."""
        self._at_once = 0

    @property
    def is_over(self) -> bool:
        """Whether every run has ended, also one whose submission was not answered."""
        if self._open:
            return False
        pools, client = self._world.stack.pools, self._world.objects.client
        unfinished = schemas.FlowRunFilter(work_pool_names=pools, state_types=UNFINISHED)
        return not client.read_flow_runs(unfinished)

    def results(self) -> list[records.Record]:
        """All that is known of every run, also of those whose submission was not answered."""
        by_name = {kind.name: kind for kind in KINDS}
        kinds = {deployment.id: by_name[name] for name, deployment in self._deployments.items()}
        found = []
        for run in self._all_runs():
            kind = self._targets.get(run.id)
            if kind is None:
                # Of a submission that was not answered, the deployment alone tells the kind.
                assert run.deployment_id is not None
                kind = kinds.get(run.deployment_id) or self._targets[run.deployment_id]
            history = records.in_order(self._world.objects.states(run.id), run.state)
            found.append(self._record(run.id, kind, history, run.work_pool_name))
        deleted = self.deleted.items()
        return found + [self._record(run_id, kind, (), None) for run_id, kind in deleted]

    def _record(
        self, run_id: UUID, kind: Kind, history: tuple[schemas.State, ...], pool: str | None
    ) -> records.Record:
        return records.Record(
            run_id=run_id,
            kind=kind.name,
            ends=kind.ends,
            opted_in=self._again or kind.infra_retries is not None,
            history=history,
            executions=records.read_executions(self._world.marks / str(run_id)),
            pool=pool,
        )

    def _all_runs(self) -> Iterator[schemas.FlowRun]:
        seen: set[UUID] = set()
        of_pools = schemas.FlowRunFilter(work_pool_names=self._world.stack.pools)
        known = [run_id for run_id in self._targets if run_id not in self.deleted]
        chunks = [known[at : at + CHUNK] for at in range(0, len(known), CHUNK)]
        for wanted in (of_pools, *(schemas.FlowRunFilter(ids=chunk) for chunk in chunks)):
            offset = 0
            while page := self._world.objects.client.read_flow_runs(wanted, offset=offset):
                yield from (run for run in page if run.id not in seen)
                seen.update(run.id for run in page)
                offset += len(page)

    def _deploy(self, kind: Kind, **values: Any) -> schemas.Deployment:
        environment = {worlds.MARKS_VARIABLE: str(self._world.marks), "PYTHONPATH": str(ROOT)}
        if self._world.skews:
            environment["LD_PRELOAD"] = ""
        variables: dict[str, Any] = {"env": environment}
        if not kind.flow:
            command = shlex.join([sys.executable, "-S", str(ENGINE)])
            known = "" if "--stubborn" in kind.arguments else "--as prefect.engine"
            variables["command"] = f"{command} {known} {kind.arguments}"
        if kind.infra_retries is not None:
            variables["infra_retries"] = kind.infra_retries
        values |= {"path": str(FLOWS), "job_variables": variables}
        if kind.concurrency_limit is not None:
            values["concurrency_limit"] = kind.concurrency_limit
        return self._world.stack.deployment(kind.flow, file="sample.py", **values)

    # The thread

    def _loop(self) -> None:
        with self._world.new_objects(HASTY) as objects:
            while not self._stopping.is_set():
                pause = LOOK_SECONDS
                try:
                    self._look(objects)
                except errors.ApiError:
                    pause = REST_SECONDS
                self._stopping.wait(pause)

    def _look(self, objects: prefect_objects.PrefectObjects) -> None:
        self._forget_ended(objects)
        for submitted in list(self._open.values()):
            self._interfere(objects, submitted)
        while len(self._open) < self._at_once:
            self._submit(objects)

    def _forget_ended(self, objects: prefect_objects.PrefectObjects) -> None:
        if not self._open:
            return
        asked = list(self._open)
        runs = objects.client.read_flow_runs(schemas.FlowRunFilter(ids=asked))
        for run in runs:
            if run.state is not None and run.state.is_terminal and not run.state.is_cancelling:
                self._open.pop(run.id)
        # Prefect deletes a deployment's Scheduled runs with it, such as one that was put back.
        for run_id in set(self._open).intersection(asked).difference(run.id for run in runs):
            self.deleted[run_id] = self._open.pop(run_id).kind

    def _submit(self, objects: prefect_objects.PrefectObjects) -> None:
        engines = sum(bool(each.kind.flow) for each in self._open.values())
        busy = engines >= self._engines_at_once
        kinds = [kind for kind in self._kinds if not (busy and kind.flow)]
        [kind] = self._dice.choices(kinds, [kind.weight for kind in kinds])
        if kind.interference == "meddle":
            # Its pool may have been deleted a moment ago.
            with contextlib.suppress(errors.ObjectNotFound):
                self._submit_own(objects, kind)
            return
        parameters: dict[str, Any] = {"seconds": kind.seconds} if kind.flow else {}
        if kind.child:
            parameters["deployment"] = str(self._deployments[kind.child].id)
        due = None
        if kind.interference == "cancel-soon":
            due = self._monotonic() + self._dice.uniform(0.0, 4.0)
        run = objects.run(self._deployments[kind.name], parameters=parameters)
        self._open[run.id] = Submitted(run.id, kind, due, begun=due is not None)

    def _submit_own(self, objects: prefect_objects.PrefectObjects, kind: Kind) -> None:
        """Submit a run with a queue and a deployment of its own."""
        pool = self._dice.choice(self._world.stack.pools)
        queue = objects.queue(pool).name
        deployment = self._deploy(kind, pool=pool, work_queue_name=queue)
        self._targets[deployment.id] = kind
        target = meddling.Target(pool, queue, deployment, self._world.elsewhere)
        run = objects.run(deployment)
        self._targets[run.id] = kind
        due = self._monotonic() + MEDDLE_SECONDS
        self._open[run.id] = Submitted(run.id, kind, due, target)

    def _interfere(self, objects: prefect_objects.PrefectObjects, submitted: Submitted) -> None:
        kind = submitted.kind
        if kind.interference is None:
            return
        if not submitted.begun and (self._world.marks / str(submitted.run_id)).exists():
            submitted.begun = True
            submitted.due = self._monotonic() + self._dice.uniform(0.0, 3.0)
        if submitted.due is not None and self._monotonic() > submitted.due:
            self._act(objects, submitted)

    def _act(self, objects: prefect_objects.PrefectObjects, submitted: Submitted) -> None:
        if submitted.kind.interference == "resume":
            self._resume(objects, submitted)
        elif submitted.target is not None:
            self._meddle(objects, submitted, submitted.target)
        else:
            self._cancel_or_delete(objects, submitted)

    def _resume(self, objects: prefect_objects.PrefectObjects, submitted: Submitted) -> None:
        # Again, since it may be paused anew by another execution.
        submitted.due = self._monotonic() + 3.0
        self.interferences["resume"] += 1
        names = {"id": str(submitted.run_id)}
        objects.client.transport.request("POST", "/flow_runs/{id}/resume", names=names, json={})

    def _meddle(
        self,
        objects: prefect_objects.PrefectObjects,
        submitted: Submitted,
        target: meddling.Target,
    ) -> None:
        is_doomed = target.pool == self._world.stack.pools[-1]
        choices = (*meddling.IN_POOL, *([meddling.delete_pool] * 2 if is_doomed else []))
        meddle = self._dice.choice(choices)
        meddle(objects, target)
        self.interferences[meddle.__name__.replace("_", " ")] += 1
        submitted.target = None
        submitted.due = self._monotonic() + self._dice.uniform(0.0, 3.0)

    def _cancel_or_delete(
        self, objects: prefect_objects.PrefectObjects, submitted: Submitted
    ) -> None:
        # Repeated if the answer is lost, and if the run is put back meanwhile.
        submitted.due = self._monotonic() + 10.0
        self.interferences[str(submitted.kind.interference)] += 1
        if submitted.kind.interference != "delete-running":
            objects.propose(submitted.run_id, schemas.StateType.CANCELLING)
            return
        with contextlib.suppress(errors.ObjectNotFound):
            objects.delete_run(submitted.run_id)
        self.deleted[submitted.run_id] = submitted.kind
        self._open.pop(submitted.run_id)
