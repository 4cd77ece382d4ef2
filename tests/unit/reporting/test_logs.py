from __future__ import annotations

import contextvars
import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from dispatcher.prefect_api import client, schemas
from dispatcher.reporting import outbox, run_logs
from dispatcher.testing import prefect_api

RUN, CLAIM = uuid4(), uuid4()


@pytest.fixture
def lines() -> list[schemas.LogEntry]:
    return []


@pytest.fixture
def loggers(lines: list[schemas.LogEntry]) -> Iterator[None]:
    """The dispatcher's loggers, with the handler attached and at INFO as in a worker."""
    ours = [logging.getLogger(name) for name in ("dispatcher", "executors")]
    before = [(each, each.level, list(each.handlers)) for each in ours]
    run_logs.attach(lines.append)
    for each in ours:
        each.setLevel(logging.INFO)
    yield
    for each, level, handlers in before:
        each.setLevel(level)
        each.handlers = handlers


pytestmark = pytest.mark.usefixtures("loggers")


def messages(lines: list[schemas.LogEntry]) -> list[str]:
    return [line.message for line in lines]


def test_a_line_within_a_run_becomes_one_of_its_page(lines: list[schemas.LogEntry]) -> None:
    before = datetime.now(UTC)
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        logging.getLogger("dispatcher.execution.claim_execution").warning("%d jobs", 2)
    [line] = lines
    assert line.name == "prefect.flow_runs.worker"
    assert line.level == logging.WARNING
    assert line.message == "2 jobs"
    assert line.flow_run_id == RUN
    assert before <= line.timestamp <= datetime.now(UTC)


def test_a_line_can_say_itself_which_run_it_is_about(lines: list[schemas.LogEntry]) -> None:
    other = uuid4()
    logger = logging.getLogger("dispatcher.upkeep.cancellation")
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        logger.info("one", extra={"flow_run_id": other})
    logger.info("two", extra={"flow_run_id": str(RUN)})
    assert [line.flow_run_id for line in lines] == [other, RUN]


def test_the_executors_lines_count_too(lines: list[schemas.LogEntry]) -> None:
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        logging.getLogger("executors.process.jobs").info("killed")
    assert messages(lines) == ["killed"]


def test_lines_outside_of_a_run_of_others_or_below_info_are_not_taken(
    lines: list[schemas.LogEntry],
) -> None:
    logging.getLogger("dispatcher").setLevel(logging.DEBUG)
    logging.getLogger("dispatcher.polling.poller").info("no run")
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        logging.getLogger("dispatcher.execution.claim_execution").debug("detail")
        logging.getLogger("celery.worker").warning("not ours")
    logging.getLogger("dispatcher.execution.claim_execution").info("no longer")
    assert not lines


@pytest.mark.parametrize(
    "name",
    ["dispatcher.prefect_api", "dispatcher.prefect_api.transport", "dispatcher.reporting.outbox"],
)
def test_lines_about_sending_lines_are_never_sent(lines: list[schemas.LogEntry], name: str) -> None:
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        logging.getLogger(name).warning("POST /logs/ failed")
    logging.getLogger(name).warning("again", extra={"flow_run_id": RUN})
    assert not lines


def test_an_exception_comes_with_its_traceback(lines: list[schemas.LogEntry]) -> None:
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        try:
            os.environ["NO_SUCH_BLOCK"]
        except KeyError:
            logging.getLogger("dispatcher.execution.claim_execution").exception("it failed")
    [line] = lines
    assert line.message.startswith("it failed\nTraceback (most recent call last):")
    assert line.message.endswith("KeyError: 'NO_SUCH_BLOCK'")


def test_a_huge_line_keeps_its_beginning_and_its_end(lines: list[schemas.LogEntry]) -> None:
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        logging.getLogger("dispatcher").info("begin %s end", "🚀" * 500_000)
    [message] = messages(lines)
    assert message.startswith("begin 🚀")
    assert message.endswith("🚀 end")
    assert "cut" in message
    assert len(json.dumps(message)) < 1_000_000


def test_what_no_server_takes_is_left_out(lines: list[schemas.LogEntry]) -> None:
    # Not through the logger: the test runner captures its lines and cannot pass on this one.
    odd = ("a\0b %s", (os.fsdecode(b"\xff.py"),))
    record = logging.LogRecord("dispatcher", logging.INFO, __file__, 0, *odd, None)
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        run_logs.FlowRunLogHandler(lines.append).handle(record)
    assert messages(lines) == ["ab ?.py"]


def test_attaching_again_replaces_the_receiver(lines: list[schemas.LogEntry]) -> None:
    others: list[schemas.LogEntry] = []
    run_logs.attach(others.append)
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        logging.getLogger("dispatcher").info("hello")
    assert not lines
    assert messages(others) == ["hello"]


def test_runs_side_by_side_keep_their_lines_apart(lines: list[schemas.LogEntry]) -> None:
    runs = [uuid4() for _ in range(4)]
    barrier = threading.Barrier(len(runs))

    def execute(run: UUID) -> None:
        with run_logs.bind_run(run, uuid4(), "my-pool"):
            barrier.wait(10)
            logging.getLogger("dispatcher").info("%s", run)

    threads = [threading.Thread(target=execute, args=(run,)) for run in runs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {line.message for line in lines} == {str(run) for run in runs}
    assert all(str(line.flow_run_id) == line.message for line in lines)


def test_a_thread_in_a_copy_of_the_context_speaks_for_the_run(
    lines: list[schemas.LogEntry],
) -> None:
    def kill() -> None:
        logging.getLogger("dispatcher.execution.job").info("killed")

    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        thread = threading.Thread(target=contextvars.copy_context().run, args=(kill,))
    thread.start()
    thread.join()
    assert [line.flow_run_id for line in lines] == [RUN]


def test_an_outage_begets_no_lines_about_itself(
    api: client.PrefectClient, prefect: prefect_api.FakePrefect
) -> None:
    prefect.faults.append(prefect_api.Fault(prefect_api.FaultKind.REQUEST_LOST, times=100))
    box: outbox.Outbox[schemas.LogEntry] = outbox.Outbox(
        api.create_logs, name="log lines", interval_seconds=0, pauses_seconds=()
    )
    run_logs.attach(box.put)
    with run_logs.bind_run(RUN, CLAIM, "my-pool"):
        logging.getLogger("dispatcher.execution.claim_execution").info("lost")
        assert box.flush(10)
    sent = prefect.requests["POST", "/logs/"]
    assert box.flush(0)
    assert prefect.requests["POST", "/logs/"] == sent
    assert box.close(10)


# How the process itself logs, seen from outside.

_LINES = """
import logging, uuid
from dispatcher.celery_app import log_setup
from dispatcher.reporting import run_logs

log_setup.configure({arguments})
run, claim = uuid.UUID(int=1), uuid.UUID(int=2)
with run_logs.bind_run(run, claim, "my-pool"):
    logging.getLogger("dispatcher.execution.claim_execution").info("job started")
poller = logging.getLogger("dispatcher.polling.poller")
poller.info("nothing", extra={{"flow_run_id": run, "data": "x"}})
logging.getLogger("dispatcher.polling.poller").debug("detail")
logging.getLogger("executors.process").info("pid 42")
logging.getLogger("celery.worker").info("task received")
logging.getLogger("celery.worker").error("broker away")
logging.getLogger("httpx").info("HTTP Request: POST")
try:
    secret = "hunter" + "2"
    raise ValueError("boom")
except ValueError:
    logging.getLogger("dispatcher.execution.job").exception("it failed")
"""


def stderr_of(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stderr


def output_of(arguments: str) -> str:
    return stderr_of(sys.executable, "-c", _LINES.format(arguments=arguments))


@pytest.mark.parametrize(
    ("level", "shown", "hidden"),
    [
        (None, ["job started", "pid 42", "broker away"], ["task received", "detail", "HTTP"]),
        (logging.DEBUG, ["job started", "detail", "task received"], ["HTTP Request"]),
        (logging.INFO, ["job started", "task received"], ["detail", "HTTP Request"]),
        (logging.ERROR, ["broker away", "it failed"], ["job started", "pid 42"]),
    ],
)
def test_a_level_counts_for_all_and_without_one_the_dispatcher_is_heard(
    level: int | None, shown: list[str], hidden: list[str]
) -> None:
    output = output_of(repr(level))
    assert [text for text in shown if text not in output] == []
    assert [text for text in hidden if text in output] == []


def test_the_console_is_plain_and_names_the_run() -> None:
    [line] = [each for each in output_of("None").splitlines() if "job started" in each]
    assert "[info     ] job started" in line
    assert "[dispatcher.execution.claim_execution]" in line
    assert line.endswith(f"flow_run_id={UUID(int=1)} claim_id={UUID(int=2)} work_pool=my-pool")
    assert "\x1b" not in line


def test_tracebacks_on_the_console_show_no_values() -> None:
    output = output_of("None, colors=True")
    assert "\x1b" in output
    assert "ValueError: boom" in output
    assert "hunter2" not in output


def test_json_has_one_object_for_each_line() -> None:
    rows = [json.loads(line) for line in output_of("None, 'json', worker='runs@host'").splitlines()]
    by_message = {row["message"]: row for row in rows}
    started = by_message["job started"]
    assert datetime.fromisoformat(started.pop("timestamp")).tzinfo is not None
    assert started == {
        "message": "job started",
        "level": "info",
        "logger": "dispatcher.execution.claim_execution",
        "flow_run_id": str(UUID(int=1)),
        "claim_id": str(UUID(int=2)),
        "work_pool": "my-pool",
        "worker": "runs@host",
    }
    assert by_message["nothing"]["flow_run_id"] == str(UUID(int=1))
    assert "data" not in by_message["nothing"]
    assert by_message["it failed"]["exception"].endswith("ValueError: boom")
    assert "hunter2" not in json.dumps(rows)


def test_a_log_file_takes_the_place_of_the_console(tmp_path: Path) -> None:
    path = tmp_path / "worker.log"
    assert not output_of(f"None, logfile={str(path)!r}")
    assert "job started" in path.read_text()


_APP = """
import logging
import uuid
from pathlib import Path

from celery import Celery, signals

from dispatcher.celery_app import log_setup
from dispatcher.reporting import outbox, run_logs

log_setup.install("json")
app = Celery("app", broker="memory://localhost")
sent = Path(__file__).with_name("sent")


def send(lines):
    with sent.open("a") as file:
        file.writelines(f"{line.message}\\n" for line in lines)


box = outbox.Outbox(send, name="log lines", interval_seconds=1000)
run_logs.attach(box.put)


@app.task(name="execute")
def execute():
    with run_logs.bind_run(uuid.UUID(int=1), uuid.UUID(int=2), "my-pool"):
        logging.getLogger("dispatcher.execution.claim_execution").info("job started")


@signals.worker_process_shutdown.connect
def leave(**_):
    box.close()


@signals.worker_ready.connect
def ready(**_):
    logging.getLogger("dispatcher.celery_app.bootsteps").info("serving")
    execute.delay()


@signals.task_received.connect
def received(**_):
    app.control.shutdown()  # which lets the task end first
"""


def worker_lines(directory: Path, *options: str) -> list[dict[str, str]]:
    """What a real Celery worker logs that executes one task."""
    (directory / "app.py").write_text(_APP)
    command = ["celery", "--workdir", str(directory), "-A", "app", "worker", "-c", "1", *options]
    output = stderr_of(sys.executable, "-m", *command)
    return [json.loads(line) for line in output.splitlines() if line.startswith("{")]


def test_a_celery_worker_logs_so_and_its_children_send_what_waits_when_they_leave(
    tmp_path: Path,
) -> None:
    rows = worker_lines(tmp_path, "--hostname", "runs@host")
    by_message = {row["message"]: row for row in rows}
    assert by_message["job started"]["flow_run_id"] == str(UUID(int=1))
    assert by_message["serving"]["worker"] == "runs@host"
    assert not any(row["logger"].startswith("celery") and row["level"] == "info" for row in rows)
    assert (tmp_path / "sent").read_text() == "job started\n"


def test_a_celery_worker_honours_the_level_it_was_given(tmp_path: Path) -> None:
    rows = worker_lines(tmp_path, "--loglevel", "ERROR")
    assert not rows
    assert (tmp_path / "sent").read_text() == "job started\n"
