"""What the dispatcher says about runs arrives where Prefect's users look for it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from dispatcher.prefect_api import client, schemas
from dispatcher.reporting import outbox, run_logs, worker_events
from dispatcher.testing import prefect_objects
from executors import configuration
from tests import waiting

ARRIVAL_SECONDS = 30.0


@pytest.fixture
def worker_name() -> str:
    return prefect_objects.new_name("Fleet Nº")


@pytest.fixture
def resource_id(worker_name: str) -> str:
    return f"prefect.worker.process.{worker_events.slugify(worker_name)}"


@pytest.fixture
def box(prefect: client.PrefectClient) -> Iterator[outbox.Outbox[schemas.Event]]:
    made = worker_events.new_outbox(prefect)
    yield made
    assert made.close(ARRIVAL_SECONDS)


@pytest.fixture
def worker(box: outbox.Outbox[schemas.Event], worker_name: str) -> worker_events.WorkerEvents:
    return worker_events.WorkerEvents(box.put, worker_name=worker_name)


@pytest.fixture
def attached(prefect: client.PrefectClient) -> Iterator[logging.Logger]:
    """A logger of the dispatcher whose lines reach their runs' pages."""
    ours = [logging.getLogger(name) for name in ("dispatcher", "executors")]
    before = [(each, each.level, list(each.handlers)) for each in ours]
    box = run_logs.new_outbox(prefect)
    run_logs.attach(box.put)
    ours[0].setLevel(logging.INFO)
    yield logging.getLogger("dispatcher.execution.claim_execution")
    assert box.close(ARRIVAL_SECONDS)
    for each, level, handlers in before:
        each.setLevel(level)
        each.handlers = handlers


def events_about(prefect: client.PrefectClient, resource_id: str, *names: str) -> list[Any]:
    """The events of these names about a resource, as they happened, once all are there."""
    body = {
        "filter": {
            "occurred": {"since": (datetime.now(UTC) - timedelta(hours=1)).isoformat()},
            "event": {"name": [f"prefect.worker.{name}" for name in names]},
            "any_resource": {"id": [resource_id]},
            "order": "ASC",
        },
        "limit": 50,
    }

    def read() -> list[Any]:
        answer = prefect.transport.request("POST", "/events/filter", json=body)
        found: list[Any] = answer["events"]
        return found if len(found) >= len(names) else []

    return waiting.wait_for(read, seconds=ARRIVAL_SECONDS, every=0.2, what=f"events {names}")


def lines_of(prefect: client.PrefectClient, flow_run_id: UUID, *, count: int) -> list[Any]:
    """A run's log, once it has ``count`` lines."""
    body = {
        "logs": {"flow_run_id": {"any_": [str(flow_run_id)]}},
        "sort": "TIMESTAMP_ASC",
        "limit": 200,
    }

    def read() -> list[Any]:
        found: list[Any] = prefect.transport.request("POST", "/logs/filter", json=body)
        return found if len(found) >= count else []

    return waiting.wait_for(read, seconds=ARRIVAL_SECONDS, every=0.2, what=f"{count} lines")


def related(event: Any, role: str) -> list[Any]:
    return [each for each in event["related"] if each["prefect.resource.role"] == role]


def test_a_worker_shows_its_start_and_its_end(
    prefect: client.PrefectClient,
    pool: schemas.WorkPool,
    worker: worker_events.WorkerEvents,
    box: outbox.Outbox[schemas.Event],
    resource_id: str,
) -> None:
    node = "runs@host"
    worker.stopped(pool, node=node, started=worker.started(pool, node=node))
    assert box.flush(ARRIVAL_SECONDS)
    started, stopped = events_about(prefect, resource_id, "started", "stopped")
    assert started["event"] == "prefect.worker.started"
    assert started["resource"]["dispatcher.node"] == node
    assert stopped["follows"] == started["id"]
    assert started["resource"]["prefect.worker-type"] == "process"
    [work_pool] = related(started, "work-pool")
    assert work_pool["prefect.resource.id"] == f"prefect.work-pool.{pool.id}"


@pytest.fixture
def run(objects: prefect_objects.PrefectObjects, deployment: schemas.Deployment) -> schemas.FlowRun:
    return objects.run(deployment, tags=["nightly"])


@pytest.fixture
def job(
    prefect: client.PrefectClient,
    deployment: schemas.Deployment,
    pool: schemas.WorkPool,
    run: schemas.FlowRun,
) -> tuple[schemas.WorkPool, configuration.BaseJobConfiguration]:
    """The run's pool, and the configuration of its job."""
    made = configuration.BaseJobConfiguration()
    made.prepare_for_flow_run(run, deployment, prefect.read_flow(run.flow_id), pool, "fleet")
    return pool, made


def test_a_run_shows_what_became_of_its_job(
    prefect: client.PrefectClient,
    worker: worker_events.WorkerEvents,
    box: outbox.Outbox[schemas.Event],
    job: tuple[schemas.WorkPool, configuration.BaseJobConfiguration],
    run: schemas.FlowRun,
) -> None:
    submission = worker.submitted(*job)
    submission.executed(identifier="host:42", status_code=0)
    submission.cancelled(identifier="host:42")
    assert box.flush(ARRIVAL_SECONDS)
    names = ("submitted-flow-run", "executed-flow-run", "cancelled-flow-run")
    submitted, executed, cancelled = events_about(prefect, f"prefect.flow-run.{run.id}", *names)
    assert executed["follows"] == submitted["id"]
    [flow_run] = related(executed, "flow-run")
    assert flow_run["prefect.resource.name"] == run.name
    assert flow_run["prefect.infrastructure.identifier"] == "host:42"
    assert flow_run["prefect.infrastructure.status-code"] == "0"
    assert related(cancelled, "flow-run")[0]["prefect.infrastructure.identifier"] == "host:42"
    assert [tag["prefect.resource.id"] for tag in related(executed, "tag")] == [
        "prefect.tag.nightly"
    ]


def test_the_dispatchers_lines_are_in_the_runs_log(
    prefect: client.PrefectClient, run: schemas.FlowRun, attached: logging.Logger
) -> None:
    with run_logs.bind_run(run.id, uuid4(), "my-pool"):
        attached.info("Worker %r submitting flow run '%s'", "fleet", run.id)
        try:
            os.environ["NO_SUCH_BLOCK"]
        except KeyError:
            attached.exception("it failed")
    attached.info("about no run")
    submitting, failed = lines_of(prefect, run.id, count=2)
    assert submitting["message"] == f"Worker 'fleet' submitting flow run '{run.id}'"
    assert submitting["name"] == "prefect.flow_runs.worker"
    assert submitting["level"] == logging.INFO
    assert submitting["timestamp"] < failed["timestamp"]
    assert failed["level"] == logging.ERROR
    assert "Traceback" in failed["message"]
    assert failed["message"].endswith("KeyError: 'NO_SUCH_BLOCK'")


def test_the_longest_line_and_odd_characters_are_taken(
    prefect: client.PrefectClient, run: schemas.FlowRun, attached: logging.Logger
) -> None:
    # Not through the logger: the test runner captures its lines and cannot pass on this one.
    record = attached.makeRecord(
        attached.name, logging.INFO, __file__, 0, "a\0b \udcff %s", ("🚀" * 500_000,), None
    )
    record.flow_run_id = run.id
    handlers = logging.getLogger("dispatcher").handlers
    (to_page,) = [each for each in handlers if isinstance(each, run_logs.FlowRunLogHandler)]
    to_page.handle(record)
    attached.info("next", extra={"flow_run_id": run.id})
    longest, following = lines_of(prefect, run.id, count=2)
    assert longest["message"].startswith("ab ? 🚀")
    assert following["message"] == "next"
