"""Which state of a task Flower shows for which end of a flow run."""

from __future__ import annotations

import pytest

from dispatcher.celery_app import task_events
from dispatcher.prefect_api import schemas

S = schemas.StateType


def explained(end: str, state: schemas.State | None) -> str:
    return task_events.explain(end, lambda: state)


@pytest.mark.parametrize(
    ("end", "kind", "words"),
    [
        ("COMPLETED", "task-succeeded", ("result", "Completed")),
        ("FAILED: ValueError('x')", "task-failed", ("exception", "ValueError('x')")),
        ("FAILED", "task-failed", ("exception", "Failed")),
        ("CRASHED: Its worker: gone.", "task-failed", ("exception", "Its worker: gone.")),
        ("CANCELLED", "task-revoked", ("terminated", True)),
        ("CANCELLED", "task-revoked", ("result", "Cancelled")),
        ("put back: It is started again.", "task-retried", ("exception", "It is started again.")),
        ("SCHEDULED: AwaitingRetry", "task-retried", ("exception", "AwaitingRetry")),
        ("left to recovery: no Redis", "task-retried", ("exception", "no Redis")),
        ("to be reported", "task-retried", ("exception", "To be reported")),
        ("PAUSED: Suspended", "task-retried", ("exception", "Suspended")),
        ("refused: held", "task-revoked", ("result", "held")),
        ("refused: held", "task-revoked", ("terminated", False)),
        ("deleted", "task-revoked", ("result", "Deleted")),
        ("of a later version", "task-revoked", ("result", "Of a later version")),
    ],
)
def test_a_runs_end_is_a_state_of_its_task(end: str, kind: str, words: tuple[str, object]) -> None:
    event, fields = task_events.of_result(repr(end), 1.5)
    assert event == kind
    name, value = words
    assert fields[name] == value
    assert fields["runtime"] == 1.5


def test_a_result_that_celery_has_cut_off_still_tells_how_it_ended() -> None:
    event, fields = task_events.of_result("'FAILED: it goes on and on, and then...", 1.0)
    assert (event, fields["exception"]) == ("task-failed", "it goes on and on, and then...")


def test_the_run_is_looked_at_only_where_its_page_tells_more() -> None:
    def never() -> schemas.State | None:
        raise AssertionError("a completed run is read for nothing")

    assert task_events.explain("COMPLETED", never) == "COMPLETED"
    assert task_events.explain("refused: held", never) == "refused: held"
    failed = schemas.State(type=S.FAILED, name="Failed", message="ValueError: no")
    assert explained("FAILED", failed) == "FAILED: ValueError: no"
    suspended = schemas.State(type=S.PAUSED, name="Suspended")
    assert explained("PAUSED", suspended) == "PAUSED: Suspended"
    assert explained("CRASHED", None) == "CRASHED"


def test_a_long_message_is_cut_off() -> None:
    failed = schemas.State(type=S.FAILED, name="Failed", message="x" * 10_000)
    assert len(explained("FAILED", failed)) < 2 * task_events.MESSAGE_CHARACTERS


class Celerys:
    """The part of Celery's request that sends events."""

    name, argsrepr, kwargsrepr = "etl/nightly", "('run', 'pool')", "{'attempt': 1}"

    def __init__(self, started: float | None) -> None:
        self.time_start = started
        self.sent: list[tuple[str, dict[str, object]]] = []

    def send_event(self, type: str, **fields: object) -> None:  # noqa: A002 # Celery's name
        self.sent.append((type, fields))


class Request(task_events.TellsTheEnd, Celerys):
    """As a worker has it."""


def test_a_message_that_comes_after_its_revoke_is_shown_under_its_name() -> None:
    request = Request(started=None)
    request.send_event("task-revoked", terminated=False)
    (received, names), (revoked, _) = request.sent
    assert (received, revoked) == ("task-received", "task-revoked")
    assert names == {"name": "etl/nightly", "args": "('run', 'pool')", "kwargs": "{'attempt': 1}"}


def test_a_task_that_celery_stops_in_a_hurry_tells_its_end_itself() -> None:
    request = Request(started=1.0)
    request.send_event("task-cancelled")
    assert request.sent == []


def test_a_task_that_has_begun_is_received_once() -> None:
    request = Request(started=1.0)
    request.send_event("task-revoked", terminated=True)
    assert [event for event, _ in request.sent] == ["task-revoked"]
