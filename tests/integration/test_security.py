"""What ``docs/security.md`` says of secrets and of what others may do, on a real worker."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from dispatcher.celery_app import tasks
from dispatcher.ledger import claims
from dispatcher.prefect_api import schemas
from tests import dispatcher_command, light_jobs, redis_topologies, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

KEY = "pnu_a-key-that-nobody-may-see"
SECRETS = (KEY, redis_topologies.PASSWORD, redis_topologies.QUOTED_PASSWORD)


@pytest.fixture(scope="module")
def stack(new_stack: NewStack) -> Iterator[stacks.Stack]:
    if reason := redis_topologies.missing():
        pytest.skip(reason)
    with (
        tempfile.TemporaryDirectory(prefix="guarded-") as directory,
        redis_topologies.guarded(Path(directory) / "redis") as url,
        new_stack(redis_url=url, PREFECT_API_KEY=KEY) as stack,
    ):
        stack.worker_with_beat(3)
        stack.wait_until_served(stack.pool)
        yield stack


def celery_report(stack: stacks.Stack) -> str:
    told = subprocess.run(
        [sys.executable, "-m", "celery", "-A", "dispatcher", "report"],
        env=stack.environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return told.stdout + told.stderr


def test_no_secret_is_in_logs_messages_process_lists_or_what_celery_tells(
    stack: stacks.Stack,
) -> None:
    deployment = stack.deployment("none")
    well = light_jobs.run(stack, deployment, *light_jobs.COMPLETE)
    broken = stack.run(stack.deployment("raises"))
    assert well.wait_for_end().type is State.COMPLETED
    assert broken.wait_for_end().type is State.FAILED
    log = stack.processes[0].text()
    shown = {
        "log": log,
        "report": celery_report(stack),
        "inspect": json.dumps(
            [stack.celery.control.inspect().conf(), stack.celery.control.inspect().stats()]
        ),
        "status": json.dumps(dispatcher_command.status(stack)),
        "messages": " ".join(
            str(state.message) for run in (well, broken) for state in run.states()
        ),
        "processes": " ".join(word for each in psutil.process_iter() for word in _words(each)),
    }
    assert all(shown.values())
    found = [
        (where, secret) for where, text in shown.items() for secret in SECRETS if secret in text
    ]
    assert found == []


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_flow_gets_prefects_credentials_and_none_of_the_dispatchers(stack: stacks.Stack) -> None:
    run = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
    run.wait_for_end()
    environ = light_jobs.seen(run)[-1]["environ"]
    assert environ["PREFECT_API_KEY"] == KEY
    assert [name for name in environ if name.startswith(("CELERY_", "FLOWER_"))] == []
    assert {name for name in environ if name.startswith("DISPATCHER_")} <= {"DISPATCHER_JOB_ID"}
    assert redis_topologies.QUOTED_PASSWORD not in json.dumps(environ)


def test_sockets_and_directories_are_the_owners_alone(stack: stacks.Stack) -> None:
    places = [path for path in stack.directory.glob("dispatcher-*") if path.is_dir()]
    assert places
    assert {path.stat().st_mode & 0o077 for path in places} == {0}


def test_who_may_write_to_the_broker_cannot_have_a_run_executed(stack: stacks.Stack) -> None:
    later = light_jobs.run(stack, stack.deployment("none", paused=True), *light_jobs.COMPLETE)
    stack.send_execute(claims.NewClaim(later.id, uuid.uuid4()))
    stack.send_execute(claims.NewClaim(uuid.uuid4(), uuid.uuid4()))
    waiting.wait_for(
        lambda: stack.processes[0].text().count("delivery refused, its claim is") >= 2,
        seconds=60,
        what="both are refused",
    )
    stack.celery.send_task(tasks.POLL, args=["no-such-pool"], queue=tasks.CONTROL_QUEUE)
    assert light_jobs.seen(later) == []
