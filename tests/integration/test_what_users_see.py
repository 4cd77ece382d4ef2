"""What a dispatcher says about itself and its runs, as Prefect's users see it."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from dispatcher.prefect_api import schemas
from tests import stack as stacks
from tests import waiting
from tests.conftest import NewStack

ARRIVAL_SECONDS = 30.0

State = schemas.StateType


def test_lines_and_events_of_a_completed_and_of_a_cancelled_run(new_stack: NewStack) -> None:
    with new_stack() as stack:
        worker = stack.worker_with_beat(concurrency=3)
        stack.wait_until_served(stack.pool)
        pool = stack.objects.client.read_work_pool(stack.pool)
        pool_id = f"prefect.work-pool.{pool.id}"
        # The pool was there after the worker, which looks again.
        events_about(stack, pool_id, "started")
        completed = stack.run(stack.deployment("notes", file="dispatch_flows.py"))
        cancelled = stack.run(
            stack.deployment("waits_for_file", file="dispatch_flows.py"), {"file": "/no/such"}
        )
        cancelled.wait_for_state(State.RUNNING)
        cancelled.cancel()
        assert cancelled.wait_for_end().type is State.CANCELLED
        assert completed.wait_for_end().type is State.COMPLETED
        assert worker.stop(60) == 0

        messages = [line["message"] for line in lines_of(stack, completed)]
        assert (
            messages[0] == f"Worker 'celery-flow-dispatcher' submitting flow run '{completed.id}'"
        )
        assert any("submitted to infrastructure" in message for message in messages)
        assert f"Completed submission of flow run '{completed.id}'" in messages

        done = events_about(stack, f"prefect.flow-run.{completed.id}", "executed-flow-run")
        assert set(done) == {"submitted-flow-run", "executed-flow-run"}
        [flow_run] = [
            each
            for each in done["executed-flow-run"]["related"]
            if each["prefect.resource.role"] == "flow-run"
        ]
        assert flow_run["prefect.infrastructure.status-code"] == "0"
        assert flow_run["prefect.infrastructure.identifier"] == completed.read().infrastructure_pid
        events_about(stack, f"prefect.flow-run.{cancelled.id}", "cancelled-flow-run")

        node = events_about(stack, pool_id, "stopped")
        assert node["stopped"]["follows"] == node["started"]["id"]
        assert node["stopped"]["resource"]["dispatcher.node"] == stack.node("worker")
        assert "HTTP Request" not in worker.text()
        assert f"flow_run_id={completed.id}" in worker.text()


def lines_of(stack: stacks.Stack, run: stacks.Run) -> list[Any]:
    body = {"logs": {"flow_run_id": {"any_": [str(run.id)]}}, "sort": "TIMESTAMP_ASC"}

    def read() -> list[Any]:
        rows: list[Any] = stack.objects.client.transport.request("POST", "/logs/filter", json=body)
        return [row for row in rows if row["name"] == "prefect.flow_runs.worker"]

    return waiting.wait_for(read, seconds=ARRIVAL_SECONDS, every=0.2, what="lines arrive")


def events_about(stack: stacks.Stack, resource_id: str, last: str) -> dict[str, Any]:
    """The worker's events about a resource, by the end of their names, once ``last`` is there."""
    body = {
        "filter": {
            "occurred": {"since": (datetime.now(UTC) - timedelta(hours=1)).isoformat()},
            "event": {"prefix": ["prefect.worker."]},
            "any_resource": {"id": [resource_id]},
        },
        "limit": 50,
    }

    def read() -> dict[str, Any]:
        answer = stack.objects.client.transport.request("POST", "/events/filter", json=body)
        found = {row["event"].removeprefix("prefect.worker."): row for row in answer["events"]}
        return found if last in found else {}

    return waiting.wait_for(read, seconds=ARRIVAL_SECONDS, every=0.2, what=f"the event {last}")
