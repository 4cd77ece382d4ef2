"""Several dispatchers and another Celery application on one database of one Redis."""

from __future__ import annotations

import os
import subprocess
import sys
from uuid import uuid4

from celery import Celery

from dispatcher.celery_app import tasks
from dispatcher.ledger import keys
from dispatcher.prefect_api import schemas
from tests import light_jobs, waiting
from tests import stack as stacks
from tests.conftest import NewStack

State = schemas.StateType

RUNS = 50
SECONDS = 180.0


def begin(stack: stacks.Stack) -> list[stacks.Run]:
    deployment = stack.deployment("none")
    return [light_jobs.run(stack, deployment, *light_jobs.COMPLETE) for _ in range(RUNS)]


def test_two_dispatchers_and_another_application_share_a_redis_and_nothing_strays(
    new_stack: NewStack,
) -> None:
    with (
        new_stack(DISPATCHER_NAMESPACE="team-a") as one,
        new_stack(DISPATCHER_NAMESPACE="team-b", redis_url=one.redis_url) as two,
    ):
        file = one.directory / "foreign"
        foreign = Celery("foreign", broker=one.redis_url, set_as_current=False)
        environment = {
            **os.environ,
            "FOREIGN_BROKER": one.redis_url,
            "FOREIGN_FILE": str(file),
            "PYTHONPATH": str(stacks.FLOWS),
        }
        command = [sys.executable, "-m", "celery", "-A", "foreign_app", "worker", "-P", "threads"]
        with subprocess.Popen(
            [*command, "-c", "2"],
            env=environment,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        ) as application:
            try:
                for stack in (one, two):
                    stack.control_worker()
                    stack.worker("runs", "-P", "threads", "-c", "4", "-Q", tasks.RUNS_QUEUE)
                for stack in (one, two):
                    stack.wait_until_served(stack.pool)
                runs = {stack.pool: begin(stack) for stack in (one, two)}
                for number in range(RUNS):
                    foreign.send_task("foreign.note", args=[str(number)])
                for stack in (one, two):
                    for run in runs[stack.pool]:
                        assert run.wait_for_end(seconds=SECONDS).type is State.COMPLETED
                        assert len(light_jobs.seen(run)) == 1
                waiting.wait_for(
                    lambda: file.exists() and len(file.read_text().splitlines()) == RUNS,
                    seconds=SECONDS,
                    what="the other application has done its own",
                )
                # What one is told, the others do not hear.
                answers = one.celery.control.ping(timeout=2.0) or []
                heard = {node for answer in answers for node in answer}
                assert heard == {one.node("control"), one.node("runs")}
                foreign.control.shutdown()
                application.wait(SECONDS)
                assert all(each.is_running for stack in (one, two) for each in stack.processes)
                said = "".join(each.text() for stack in (one, two) for each in stack.processes)
                assert "a message was dropped" not in said
                own = ("{team-a}:", "{team-b}:")
                found = one.redis.scan_iter("*dispatcher*")
                strays = [key for key in found if not key.startswith(own)]
                assert strays == []
            finally:
                application.kill()


def test_without_a_namespace_the_keys_are_those_of_earlier_versions() -> None:
    assert keys.PREFIX == keys.prefix_of(keys.DEFAULT_NAMESPACE) == "{dispatcher}:"


def test_all_that_a_dispatcher_keeps_has_its_name(new_stack: NewStack) -> None:
    with new_stack(DISPATCHER_NAMESPACE="team-a") as stack:
        stack.worker("all", "-c", "3", "-B", "-s", str(stack.directory / "schedule"))
        stack.wait_until_served(stack.pool)
        done = light_jobs.run(stack, stack.deployment("none"), *light_jobs.COMPLETE)
        assert done.wait_for_end().type is State.COMPLETED
        stack.celery.control.revoke(str(uuid4()))
        names = set(stack.redis.scan_iter())
        assert {name for name in names if not name.startswith("{team-a}:")} == set()
        assert any("_kombu" in name for name in names)
