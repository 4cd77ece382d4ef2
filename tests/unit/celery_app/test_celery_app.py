"""The Celery app: its settings, queues and schedule, what it sends, what workers it refuses."""

from __future__ import annotations

import base64
import contextlib
import json
import logging
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import UUID, uuid4

import celery as celery_library
import pytest
import redis as redis_library
from celery import signals
from celery.app import defaults

from dispatcher import services, settings
from dispatcher.celery_app import app as apps
from dispatcher.celery_app import bootsteps, configuration, messenger, node_description, tasks
from dispatcher.execution import wake_signals
from dispatcher.ledger import claims, fleet, keys
from dispatcher.prefect_api import schemas
from dispatcher.reporting import run_logs
from dispatcher.testing import prefect_api, prefect_objects
from executors.process import starting
from tests import redis_server, waiting

SECRET = "s3cret"
START_SECONDS = 60.0
ENVIRONMENT = {
    "DISPATCHER_WORK_POOLS": "a,b",
    "PREFECT_API_URL": "http://127.0.0.1:1/api",
    "PREFECT_API_KEY": SECRET,
    "DISPATCHER_REDIS_URL": f"redis://:{SECRET}@127.0.0.1:1/0",
}


def surroundings(**changes: str) -> dict[str, str]:
    """This process' environment without settings of ours or Prefect's, plus some."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("DISPATCHER_", "PREFECT_"))
    }
    return kept | changes


def options(**values: Any) -> settings.Settings:
    given = {
        "work_pools": ("a", "b"),
        "prefect_api_url": "http://127.0.0.1:1/api",
        "prefect_api_key": SECRET,
        "redis_url": f"redis://:{SECRET}@127.0.0.1:1/0",
    }
    return settings.Settings.model_validate(given | values)


@pytest.fixture(autouse=True)
def _own_logs() -> Iterator[None]:
    """Lets no later test's lines go to an app of this one."""
    yield
    for name in ("dispatcher", "executors"):
        logger = logging.getLogger(name)
        for handler in [
            each for each in logger.handlers if isinstance(each, run_logs.FlowRunLogHandler)
        ]:
            logger.removeHandler(handler)


@pytest.fixture
def app() -> Iterator[celery_library.Celery]:
    made = apps.create_app(options())
    yield made
    made.close()


# Importing it


def python(*arguments: str, environment: Mapping[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments],
        env=dict(environment),
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
    )


@pytest.mark.parametrize(
    ("environment", "words"),
    [
        ({}, ["DISPATCHER_WORK_POOLS is not set", "PREFECT_API_URL is not set"]),
        (ENVIRONMENT | {"DISPATCHER_REDIS_URL": f"http://:{SECRET}@x"}, ["DISPATCHER_REDIS_URL"]),
    ],
)
def test_without_usable_settings_the_import_ends_with_one_line(
    environment: dict[str, str], words: list[str]
) -> None:
    done = python("-c", "import dispatcher.celery", environment=surroundings(**environment))
    assert done.returncode == 1
    assert done.stderr.startswith("dispatcher: ")
    assert done.stderr.count("\n") == 1
    assert all(word in done.stderr for word in words)
    assert SECRET not in done.stderr


def test_celerys_own_command_finds_the_app_and_shows_no_traceback_without_settings() -> None:
    report = ("-m", "celery", "-A", "dispatcher", "report")
    missing = python(*report, environment=surroundings())
    assert missing.returncode != 0
    assert "Traceback" not in missing.stdout + missing.stderr
    assert "DISPATCHER_WORK_POOLS is not set" in missing.stderr
    found = python(*report, environment=surroundings(**ENVIRONMENT))
    assert found.returncode == 0, found.stderr
    assert "dispatcher.runs" in found.stdout
    assert SECRET not in found.stdout + found.stderr


# Settings


def test_every_setting_is_one_that_celery_knows() -> None:
    known = {item[0] for item in defaults.flatten(defaults.NAMESPACES)}
    known.add("result_backend_thread_safe")  # documented and read, but not in the list
    assert set(configuration.configuration(options())) <= known


def test_the_settings_reach_the_app(app: celery_library.Celery) -> None:
    for name, value in configuration.configuration(options()).items():
        if name != "task_queues":
            assert getattr(app.conf, name) == value, name


@pytest.mark.parametrize(
    ("name", "value"),
    [
        # late acknowledgement starts a run again after a mere loss of the connection
        ("task_acks_late", False),
        # a message waits in Redis, where any worker gets it, not in a busy worker
        ("worker_disable_prefetch", True),
        ("worker_prefetch_multiplier", 1),
        # a lost connection is no reason to kill runs
        ("worker_cancel_long_running_tasks_on_connection_loss", False),
        # a slip in a queue's name is an error, not a queue that nobody consumes
        ("task_create_missing_queues", False),
        # nothing but JSON is taken from the broker
        ("accept_content", ["json"]),
        ("task_serializer", "json"),
    ],
)
def test_celerys_habits_that_lose_or_double_runs_are_off(
    app: celery_library.Celery, name: str, value: object
) -> None:
    assert getattr(app.conf, name) == value


def test_each_queue_has_an_exchange_and_a_key_of_its_own(app: celery_library.Celery) -> None:
    queues = app.amqp.queues
    pools = {tasks.pool_queue("a"), tasks.pool_queue("b")}
    assert set(queues) == {tasks.CONTROL_QUEUE, tasks.RUNS_QUEUE} | pools
    for name, queue in queues.items():
        assert (queue.exchange.name, queue.exchange.type, queue.routing_key) == (
            name,
            "direct",
            name,
        )


def test_control_work_comes_before_runs(app: celery_library.Celery) -> None:
    assert app.conf.broker_transport_options["queue_order_strategy"] == "priority"
    assert next(iter(app.amqp.queues)) == tasks.CONTROL_QUEUE


def test_the_apps_tasks_are_its_own() -> None:
    one, other = apps.create_app(options()), apps.create_app(options(work_pools=("c",)))
    names = {tasks.POLL, tasks.CANCEL, tasks.RECOVER, tasks.SYNC, tasks.EXECUTE}
    for made in (one, other):
        made.finalize()
        assert {name for name in made.tasks if name.startswith("dispatcher.")} >= names
    for name in names:
        assert one.tasks[name].run is not other.tasks[name].run
        assert one.tasks[name].app is one


def test_beat_sends_each_tick_for_each_pool_and_says_how_often() -> None:
    plan = configuration.beat_schedule(
        options(poll_interval=7, cancel_interval=3, heartbeat_interval=20)
    )
    assert set(plan) == {
        f"{task}:{pool}"
        for task in (tasks.POLL, tasks.CANCEL, tasks.RECOVER, tasks.SYNC)
        for pool in ("a", "b")
    }
    entry = plan[f"{tasks.POLL}:a"]
    assert entry["task"] == tasks.POLL
    assert entry["args"] == ("a",)
    assert entry["schedule"].run_every.total_seconds() == 7
    assert entry["options"] == {
        "queue": tasks.CONTROL_QUEUE,
        "expires": configuration.TICK_LIFETIME,
        "headers": {tasks.INTERVAL: 7},
        "ignore_result": True,
    }
    assert plan[f"{tasks.CANCEL}:b"]["options"]["headers"] == {tasks.INTERVAL: 3}
    assert plan[f"{tasks.SYNC}:b"]["options"]["headers"] == {tasks.INTERVAL: 20}


def test_beat_can_read_the_schedule(app: celery_library.Celery) -> None:
    schedule = app.conf.beat_schedule
    assert {entry["task"] for entry in schedule.values()} <= set(app.tasks)


def test_secrets_show_in_no_representation(app: celery_library.Celery) -> None:
    shown = [repr(options()), str(options()), repr(app), app.bugreport(), app.conf.humanize()]
    assert not any(SECRET in text for text in shown)


# What it sends


@pytest.fixture
def broker(tcp_redis: redis_server.RedisServer) -> Iterator[tuple[Any, redis_library.Redis]]:
    """A messenger, and the Redis where its messages arrive."""
    url = tcp_redis.new_url()
    connection = redis_library.Redis.from_url(url, decode_responses=True)
    connection.flushdb()
    app = apps.create_app(options(redis_url=url))
    yield messenger.CeleryMessenger(app), connection
    app.close()
    connection.close()


def message_in(redis: redis_library.Redis, queue: str) -> dict[str, Any]:
    # Kombu keeps messages of a higher priority in the list of that name.
    assert redis.llen(queue) == 1
    text = redis.lindex(queue, 0)
    assert isinstance(text, str)
    message: dict[str, Any] = json.loads(text)
    return message


def body_of(message: Mapping[str, Any]) -> Any:
    return json.loads(base64.b64decode(message["body"]))


def test_a_claimed_runs_message_holds_ids_and_nothing_else(
    broker: tuple[Any, redis_library.Redis],
) -> None:
    messenger, redis = broker
    run = schemas.FlowRun(
        id=uuid4(),
        flow_id=uuid4(),
        name="happy-run",
        parameters={"password": SECRET},
        job_variables={"env": {"TOKEN": SECRET}},
    )
    claim = claims.NewClaim(run.id, uuid4())
    title = "etl/" + "x" * 1000
    messenger.send_execute(run, claim, "a", attempt=2, title=title, page="http://x/7")
    message = message_in(redis, tasks.RUNS_QUEUE)
    headers = message["headers"]
    assert (headers["task"], headers["id"]) == (tasks.EXECUTE, str(claim.claim_id))
    assert headers["argsrepr"] == "('happy-run', 'a')"
    assert headers["kwargsrepr"] == "{'attempt': 2, 'page': 'http://x/7'}"
    assert headers["shadow"] == "etl/" + "x" * 116
    assert (headers["eta"], headers["expires"]) == (None, None)
    assert headers["ignore_result"] is True
    args, kwargs, _ = body_of(message)
    assert (args, kwargs) == ([str(run.id), str(claim.claim_id)], {})
    assert SECRET not in json.dumps([headers, body_of(message)])


@pytest.mark.parametrize("task", [tasks.POLL, tasks.SYNC])
def test_control_work_is_sent_to_its_own_queue(
    broker: tuple[Any, redis_library.Redis], task: str
) -> None:
    messenger, redis = broker
    messenger.send_tick(task, "a")
    message = message_in(redis, tasks.CONTROL_QUEUE)
    assert message["headers"]["task"] == task
    assert body_of(message)[0] == ["a"]
    assert redis.llen(tasks.RUNS_QUEUE) == 0


def test_a_run_that_is_meant_for_a_worker_waits_in_its_own_queue(
    broker: tuple[Any, redis_library.Redis],
) -> None:
    messenger, redis = broker
    claim = claims.NewClaim(uuid4(), uuid4())
    run = schemas.FlowRun(id=claim.flow_run_id, flow_id=uuid4(), name="happy-run")
    messenger.send_execute(run, claim, "a", attempt=1, node="w@h")
    assert body_of(message_in(redis, tasks.node_queue("w@h")))[0][1] == str(claim.claim_id)
    assert redis.llen(tasks.RUNS_QUEUE) == redis.llen(tasks.CONTROL_QUEUE) == 0
    assert redis.keys("_kombu.binding.*") == []


def test_a_nudge_is_a_poll(broker: tuple[Any, redis_library.Redis]) -> None:
    messenger, redis = broker
    messenger.send_poll("a")
    assert message_in(redis, tasks.CONTROL_QUEUE)["headers"]["task"] == tasks.POLL


def listen(redis: redis_library.Redis) -> Any:
    return redis.pubsub(ignore_subscribe_messages=True)  # type: ignore[no-untyped-call]


def test_a_revoke_reaches_all_workers_with_the_wake_signal(
    broker: tuple[Any, redis_library.Redis],
) -> None:
    messenger, redis = broker
    claim_id = UUID(int=7)
    with contextlib.closing(listen(redis)) as listener:
        database = redis.get_connection_kwargs()["db"]
        listener.psubscribe(f"/{database}.*pidbox*")
        listener.get_message(timeout=5.0)
        messenger.revoke(claim_id)
        received = waiting.wait_for(
            lambda: listener.get_message(timeout=1.0), seconds=10, what="the broadcast"
        )
    request = body_of(json.loads(received["data"]))
    assert request["method"] == "revoke"
    assert request["destination"] is None
    assert request["arguments"]["task_id"] == str(claim_id)
    assert request["arguments"]["terminate"] is True
    assert request["arguments"]["signal"] == wake_signals.WAKE_SIGNAL.name == "SIGUSR2"


# Its workers


@pytest.fixture(autouse=True)
def nothing_of_workers_is_left() -> Iterator[None]:
    """What a worker of this process keeps on its node would serve the tests that come after."""
    yield
    signals.worker_shutdown.send(sender=None)
    os.environ.pop(starting.MODE_VARIABLE, None)


def make_worker(**values: Any) -> Any:
    return apps.create_app(options()).WorkController(hostname="w@h", **values)


@pytest.mark.parametrize(
    ("concurrency", "queues", "slots", "serves_control"),
    [
        # both queues, the default: one place is kept for control work
        (4, None, 3, True),
        (2, [tasks.CONTROL_QUEUE, tasks.RUNS_QUEUE], 1, True),
        (4, [tasks.RUNS_QUEUE], 4, False),
        (1, [tasks.RUNS_QUEUE], 1, False),
        (1, [tasks.CONTROL_QUEUE], 0, True),
    ],
)
def test_a_worker_counts_its_slots_by_its_queues_and_concurrency(
    *,
    concurrency: int,
    queues: list[str] | None,
    slots: int,
    serves_control: bool,
) -> None:
    worker = make_worker(concurrency=concurrency, queues=queues)
    node = node_description.describe(worker, options())
    assert (node.name, node.pid) == ("w@h", os.getpid())
    assert (node.slots, node.serves_control) == (slots, serves_control)
    assert node_description.serves_control(worker) is serves_control


def test_a_worker_that_is_too_small_for_both_queues_is_refused_with_one_line() -> None:
    with pytest.raises(SystemExit) as caught:
        make_worker(concurrency=1)
    assert str(caught.value).startswith("dispatcher: a worker that serves both queues needs")
    assert "\n" not in str(caught.value)


def test_a_worker_for_a_queue_that_does_not_exist_is_refused_with_one_line() -> None:
    chosen = f"{tasks.pool_queue('a')},{tasks.pool_queue('c')}"
    done = python(
        *("-m", "celery", "-A", "dispatcher", "worker", "-Q", chosen),
        environment=surroundings(**ENVIRONMENT),
    )
    assert done.returncode == 1
    assert done.stderr.startswith("dispatcher: there is no queue dispatcher.runs.c for -Q;")
    assert done.stderr.count("\n") == 1
    assert "DISPATCHER_WORK_POOLS" in done.stderr


def test_a_worker_reports_its_slots_and_serves_its_pools_as_long_as_it_runs(
    tcp_redis: redis_server.RedisServer,
    prefect: prefect_api.FakePrefect,
    objects: prefect_objects.PrefectObjects,
) -> None:
    url = tcp_redis.new_url()
    redis = redis_library.Redis.from_url(url, decode_responses=True)
    redis.flushdb()
    for pool in ("a", "b"):
        objects.pool(pool)
    workers = fleet.Fleet(redis)
    with prefect.serve() as api_url:
        given = options(redis_url=url, prefect_api_url=api_url)
        worker = apps.create_app(given).WorkController(hostname="w@h", concurrency=4)
        step = step_of(worker, "JoinFleet")
        step.start(worker)
        assert [(node.name, node.slots) for node in workers.nodes()] == [("w@h", 3)]
        wait_for_events(prefect, "prefect.worker.started")
        step.stop(worker)
        assert workers.nodes() == []
        step.terminate(worker)  # as a shutdown that was warm at first does
        wait_for_events(prefect, "prefect.worker.stopped")
    redis.close()


def step_of(worker: Any, name: str) -> Any:
    (step,) = [step for step in worker.blueprint.order if type(step).__name__ == name]
    return step


def wait_for_events(prefect: prefect_api.FakePrefect, name: str) -> None:
    waiting.wait_for(lambda: len(prefect.events(name)) == 2, seconds=10, what=name)


def test_a_worker_leaves_the_fleet_before_its_pool_is_stopped() -> None:
    worker = make_worker(concurrency=4)
    # Steps are stopped in the opposite order.
    names = [type(step).__name__ for step in worker.blueprint.order]
    assert names.index("Pool") < names.index("JoinFleet")


def test_the_queue_of_a_worker_that_has_gone_for_good_is_taken_away(
    tcp_redis: redis_server.RedisServer,
) -> None:
    app = apps.create_app(options(redis_url=tcp_redis.url))
    parts = services.Services(options(redis_url=tcp_redis.url), messenger.CeleryMessenger(app))
    redis = parts.redis
    for name in ("gone", "there"):
        parts.fleet.report(fleet.Node(name, 1, 1, serves_control=False, version="1"))
        redis.lpush(tasks.node_queue(name), "a message")
    redis.zincrby(f"{keys.PREFIX}nodes:names", -fleet.NAME_LIFETIME - 10, "gone")
    bootsteps.note_report(app, parts)
    assert redis.exists(tasks.node_queue("gone")) == 0
    assert redis.exists(tasks.node_queue("there")) == 1
    app.close()
