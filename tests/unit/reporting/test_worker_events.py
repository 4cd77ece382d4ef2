from __future__ import annotations

import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest
from prefect.utilities import slugify as prefect_slugify

from dispatcher import errors
from dispatcher.prefect_api import schemas
from dispatcher.reporting import worker_events
from executors import configuration
from tests import waiting

START = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
POOL = schemas.WorkPool(id=uuid4(), name="my-pool", type="process")
POOL_RELATED = {
    "prefect.resource.id": f"prefect.work-pool.{POOL.id}",
    "prefect.resource.role": "work-pool",
    "prefect.resource.name": "my-pool",
}


class Clock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def emitted() -> list[schemas.Event]:
    return []


@pytest.fixture
def worker(emitted: list[schemas.Event], clock: Clock) -> worker_events.WorkerEvents:
    return worker_events.WorkerEvents(
        emitted.append,
        worker_name="My Fleet",
        prefect_version="3.8.8",
        now=clock,
    )


@pytest.fixture
def job() -> configuration.BaseJobConfiguration:
    """A configuration that knows its run."""
    flow = schemas.Flow(id=uuid4(), name="flow", tags=("f",))
    deployment = schemas.Deployment(id=uuid4(), name="deployment", flow_id=flow.id)
    run = schemas.FlowRun(id=uuid4(), name="run", flow_id=flow.id, tags=("r", "f"))
    made = configuration.BaseJobConfiguration()
    made.prepare_for_flow_run(run, deployment, flow, POOL, "My Fleet")
    return made


def resources_of(event: schemas.Event, role: str) -> list[dict[str, str]]:
    return [each for each in event.related if each["prefect.resource.role"] == role]


def test_the_resource_of_every_event_is_the_fleet_as_one_worker_of_the_pools_type(
    worker: worker_events.WorkerEvents,
    emitted: list[schemas.Event],
    job: configuration.BaseJobConfiguration,
) -> None:
    fleet = {
        "prefect.resource.id": "prefect.worker.process.my-fleet",
        "prefect.resource.name": "My Fleet",
        "prefect.version": "3.8.8",
        "prefect.worker-type": "process",
    }
    submission = worker.submitted(POOL, job)
    submission.executed(identifier="host:42", status_code=0)
    submission.cancelled(identifier="host:42")
    assert [event.resource for event in emitted] == [fleet] * 3
    assert {event.occurred for event in emitted} == {START}

    worker.started(POOL, node="runs@host")
    assert emitted[-1].resource == {**fleet, "dispatcher.node": "runs@host"}
    assert emitted[-1].event == "prefect.worker.started"
    assert emitted[-1].related == [POOL_RELATED]


def test_stopped_follows_started(
    worker: worker_events.WorkerEvents, emitted: list[schemas.Event]
) -> None:
    started = worker.started(POOL, node="runs@host")
    worker.stopped(POOL, node="runs@host", started=started)
    assert [event.event for event in emitted] == [
        "prefect.worker.started",
        "prefect.worker.stopped",
    ]
    assert emitted[1].follows == emitted[0].id
    assert emitted[1].resource == emitted[0].resource
    assert emitted[1].related == [POOL_RELATED]


def test_submitted_relates_to_deployment_flow_run_tags_and_pool(
    worker: worker_events.WorkerEvents,
    emitted: list[schemas.Event],
    job: configuration.BaseJobConfiguration,
) -> None:
    worker.submitted(POOL, job)
    [event] = emitted
    assert event.event == "prefect.worker.submitted-flow-run"
    assert [each["prefect.resource.role"] for each in event.related] == [
        "deployment",
        "flow",
        "flow-run",
        "tag",
        "tag",
        "work-pool",
    ]
    assert event.related[:5] == job.related_resources()


def test_executed_follows_submitted_and_says_where_and_how_the_job_ended(
    worker: worker_events.WorkerEvents,
    emitted: list[schemas.Event],
    job: configuration.BaseJobConfiguration,
) -> None:
    worker.submitted(POOL, job).executed(identifier="host:42", status_code=-9)
    submitted, executed = emitted
    assert executed.event == "prefect.worker.executed-flow-run"
    assert executed.follows == submitted.id
    [run] = resources_of(executed, "flow-run")
    [run_at_first] = resources_of(submitted, "flow-run")
    assert run == {
        **run_at_first,
        "prefect.infrastructure.identifier": "host:42",
        "prefect.infrastructure.status-code": "-9",
    }
    assert [each for each in executed.related if each != run] == [
        each for each in submitted.related if each != run_at_first
    ]


def test_cancelled_says_which_job_was_stopped(
    worker: worker_events.WorkerEvents,
    emitted: list[schemas.Event],
    job: configuration.BaseJobConfiguration,
) -> None:
    worker.cancelled(POOL, job, identifier="host:42")
    worker.submitted(POOL, job).cancelled(identifier="host:42")
    for event in (emitted[0], emitted[2]):
        assert event.event == "prefect.worker.cancelled-flow-run"
        [run] = resources_of(event, "flow-run")
        assert run["prefect.infrastructure.identifier"] == "host:42"
        assert "prefect.infrastructure.status-code" not in run


@pytest.mark.parametrize("seconds", [0, 299, 300, 7200])
def test_an_event_follows_only_one_that_the_server_still_remembers(
    worker: worker_events.WorkerEvents,
    emitted: list[schemas.Event],
    job: configuration.BaseJobConfiguration,
    clock: Clock,
    seconds: int,
) -> None:
    submission = worker.submitted(POOL, job)
    clock.now += timedelta(seconds=seconds)
    submission.executed(identifier="host:42", status_code=0)
    assert (emitted[1].follows == emitted[0].id) is (seconds < 300)


class Broken:
    def related_resources(self) -> list[dict[str, str]]:
        raise RuntimeError("no resources here")


def test_a_configuration_that_fails_harms_nobody(
    worker: worker_events.WorkerEvents,
    emitted: list[schemas.Event],
    caplog: pytest.LogCaptureFixture,
) -> None:
    submission = worker.submitted(POOL, Broken())
    submission.executed(identifier="host:42", status_code=0)
    submission.cancelled(identifier="host:42")
    assert not emitted
    assert caplog.messages[0] == "the event submitted-flow-run could not be emitted"
    assert "no resources here" in caplog.text


def test_the_version_is_that_of_the_prefect_beside_the_dispatcher(
    emitted: list[schemas.Event],
) -> None:
    import prefect

    worker_events.WorkerEvents(emitted.append, worker_name="w").started(POOL, node="n")
    assert emitted[0].resource["prefect.version"] == prefect.__version__


NAMES = [
    "celery-flow-dispatcher",
    "ProcessWorker 1c35a0d8-7b0f-4c9e-8d62-7fd2d5a7c0a1",
    "My Worker",
    "  blanks  around ",
    "under_score.and.dots",
    "UPPER and lower",
    "it's Bob\u2019s worker",
    "comma 1,000 and a, b",
    "dashes--and---more-",
    "en \u2013 dash — and … dots",
    "Zürich Übergröße straße",
    "Łódź Đà Nẵng Ærø Œuvre þorn ħal",
    "café résumé naïve",
    "İstanbul \u0131l\u0131k",
    "x² and Ⅳ and ﬁ",
    "rocket 🚀 worker",
    "w@host:1",
    "a+b=c",
    "...",
    "",
    "42",
]


@pytest.mark.parametrize("name", NAMES)
def test_the_slug_of_a_name_in_latin_letters_is_prefects(name: str) -> None:
    assert worker_events.slugify(name) == prefect_slugify.slugify(name)


def test_names_in_other_scripts_have_slugs_that_differ() -> None:
    names = ["воркер", "сервер", "工作者", "工作人", "εργάτης", "воркер 1"]
    slugs = {worker_events.slugify(name) for name in names}
    assert len(slugs) == len(names)
    assert all(slug.replace("-", "").isalnum() and slug.isascii() for slug in slugs)


class Pools:
    """Pools that can be read once they are known."""

    def __init__(self, *known: schemas.WorkPool) -> None:
        self.known = {pool.name: pool for pool in known}
        self.reads = 0

    def read(self, name: str) -> schemas.WorkPool:
        self.reads += 1
        if name not in self.known:
            raise errors.ObjectNotFound
        return self.known[name]


NewNode = Callable[..., worker_events.NodeEvents]


@pytest.fixture
def new_node(worker: worker_events.WorkerEvents) -> NewNode:
    def new(pools: Pools, *names: str) -> worker_events.NodeEvents:
        return worker_events.NodeEvents(
            worker, pools.read, names, node="runs@host", interval_seconds=0.02
        )

    return new


def test_a_node_tells_each_of_its_pools_of_its_start_and_its_end(
    new_node: NewNode, emitted: list[schemas.Event]
) -> None:
    other = POOL.model_copy(update={"id": uuid4(), "name": "other", "type": "docker"})
    node = new_node(Pools(POOL, other), "my-pool", "other")
    node.start()
    waiting.wait_for(lambda: len(emitted) == 2, seconds=10, what="both pools were told")
    node.stop()
    node.stop()
    assert [event.event.removeprefix("prefect.worker.") for event in emitted] == [
        "started",
        "started",
        "stopped",
        "stopped",
    ]
    assert [event.follows for event in emitted[2:]] == [event.id for event in emitted[:2]]
    assert emitted[1].resource["prefect.resource.id"] == "prefect.worker.docker.my-fleet"


def test_a_pool_that_does_not_exist_yet_is_told_once_it_does(
    new_node: NewNode, emitted: list[schemas.Event]
) -> None:
    pools = Pools()
    node = new_node(pools, "my-pool")
    node.start()
    waiting.wait_for(lambda: pools.reads > 1, seconds=10, what="the pool is looked for again")
    assert not emitted
    pools.known["my-pool"] = POOL
    waiting.wait_for(lambda: emitted, seconds=10, what="the pool was told")
    node.stop()


def test_a_pool_that_did_not_hear_of_the_start_does_not_hear_of_the_end(
    new_node: NewNode, emitted: list[schemas.Event]
) -> None:
    node = new_node(Pools(), "my-pool")
    node.start()
    node.stop()
    assert not emitted


def test_a_pool_that_is_read_after_the_end_hears_of_neither(
    worker: worker_events.WorkerEvents, emitted: list[schemas.Event]
) -> None:
    reading, go_on = threading.Event(), threading.Event()

    def read(_name: str) -> schemas.WorkPool:
        reading.set()
        go_on.wait(10)
        return POOL

    node = worker_events.NodeEvents(worker, read, ["my-pool"], node="runs@host")
    node.start()
    assert reading.wait(10)
    node.stop()
    go_on.set()
    waiting.wait_for(
        lambda: "node-events" not in {each.name for each in threading.enumerate()},
        seconds=10,
        what="the thread has ended",
    )
    assert not emitted
