"""How many runs a worker takes whose users have told it otherwise since it started."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any

import celery
import pytest
from celery.concurrency import thread
from kombu.utils import limits

from dispatcher import settings
from dispatcher.celery_app import (
    configuration,
    dropped_messages,
    node_description,
    tasks,
    thread_pool,
)
from dispatcher.execution import run_places

OPTIONS = settings.Settings(
    work_pools=("b", "a"), work_queues=("gpu",), prefect_api_url="http://127.0.0.1:1/api"
)
BOTH = (tasks.RUNS_QUEUE, tasks.CONTROL_QUEUE)
PREFORK = SimpleNamespace(__module__="celery.concurrency.prefork")


def worker(concurrency: int = 4, queues: tuple[str, ...] = BOTH, **more: Any) -> Any:
    execute = SimpleNamespace(rate_limit=None)
    app = SimpleNamespace(
        amqp=SimpleNamespace(queues=SimpleNamespace(consume_from=dict.fromkeys(queues))),
        tasks={tasks.EXECUTE: execute},
    )
    values = {
        "app": app,
        "hostname": "w@h",
        "pool_cls": PREFORK,
        "concurrency": concurrency,
        "pool": SimpleNamespace(num_processes=concurrency),
    }
    return SimpleNamespace(**(values | more))


def describer(of: Any) -> tuple[node_description.Describer, run_places.RunPlaces]:
    places = run_places.RunPlaces()
    return node_description.Describer(
        of, places, OPTIONS, dropped_messages.DroppedMessages()
    ), places


def test_a_pool_that_grows_and_shrinks_is_counted_as_it_is() -> None:
    changing = worker(concurrency=3)
    describe, places = describer(changing)
    assert (describe().slots, places.limit) == (2, 2)
    changing.pool.num_processes = 6
    assert (describe().slots, places.limit) == (5, 5)
    changing.pool.num_processes = 1
    node = describe()
    assert (node.slots, places.limit) == (0, 0)
    assert "kept for control work" in node.held_up


def test_a_worker_that_scales_counts_as_large_as_it_may_grow() -> None:
    scaling = worker(autoscaler=SimpleNamespace(max_concurrency=8), queues=(tasks.RUNS_QUEUE,))
    assert describer(scaling)[0]().slots == 8


def test_a_worker_that_starts_counts_as_large_as_it_is_to_be() -> None:
    starting = worker(concurrency=5, queues=(tasks.RUNS_QUEUE,), pool=None)
    assert describer(starting)[0]().slots == 5


def test_a_worker_that_does_not_consume_runs_any_more_says_so() -> None:
    leaving = worker(queues=(tasks.RUNS_QUEUE,))
    describe, _ = describer(leaving)
    assert describe().held_up == ""
    queues = leaving.app.amqp.queues
    queues.consume_from = {}
    assert (describe().slots, describe().held_up) == (0, "it does not consume dispatcher.runs")
    queues.consume_from = dict.fromkeys([tasks.RUNS_QUEUE])
    assert (describe().slots, describe().held_up) == (4, "")


def test_a_worker_whose_own_queue_is_taken_from_it_takes_no_runs_and_says_so() -> None:
    own = tasks.node_queue("w@h")
    leaving = worker(queues=(tasks.RUNS_QUEUE, own))
    describe, _ = describer(leaving)
    assert describe().slots == 4
    queues = leaving.app.amqp.queues
    queues.consume_from = dict.fromkeys([tasks.RUNS_QUEUE])
    assert (describe().slots, describe().held_up) == (0, f"it does not consume {own}")
    queues.consume_from = dict.fromkeys([tasks.RUNS_QUEUE, own])
    assert (describe().slots, describe().held_up) == (4, "")


def test_a_worker_serves_the_pools_whose_queues_it_consumes() -> None:
    node = describer(worker(queues=(tasks.RUNS_QUEUE,)))[0]()
    assert (node.pools, node.work_queues) == (("a", "b"), ("gpu",))
    choosy = worker(queues=(tasks.pool_queue("a"), tasks.pool_queue("b")))
    describe, _ = describer(choosy)
    assert (describe().slots, describe().pools) == (4, ("a", "b"))
    queues = choosy.app.amqp.queues
    queues.consume_from = dict.fromkeys([tasks.pool_queue("b")])
    assert (describe().slots, describe().pools, describe().held_up) == (4, ("b",), "")
    queues.consume_from = {}
    assert (describe().slots, describe().pools) == (0, ())
    assert describe().held_up == "it does not consume dispatcher.runs.b"


def real_worker(*chosen: str) -> Any:
    app = celery.Celery("test", set_as_current=False)
    app.conf.update(configuration.configuration(OPTIONS))
    app.amqp.queues.select(list(chosen))
    return SimpleNamespace(app=app, hostname="w@h")


def test_a_worker_consumes_a_queue_of_its_own_and_those_of_single_pools_only_if_told_so() -> None:
    own = tasks.node_queue("w@h")
    usual = real_worker()
    node_description.choose_queues(usual, OPTIONS)
    consumed = node_description.queues_of(usual)
    assert consumed == {tasks.CONTROL_QUEUE, tasks.RUNS_QUEUE, own}
    assert next(iter(usual.app.amqp.queues.consume_from)) == tasks.CONTROL_QUEUE
    choosy = real_worker(tasks.pool_queue("a"))
    node_description.choose_queues(choosy, OPTIONS)
    assert node_description.queues_of(choosy) == {tasks.pool_queue("a"), own}
    # By the exchange that every broker has: nothing is left of a worker that has gone.
    assert choosy.app.amqp.queues[own].exchange.name == ""


def test_a_worker_for_control_alone_takes_no_runs_and_nothing_holds_it_up() -> None:
    node = describer(worker(concurrency=1, queues=(tasks.CONTROL_QUEUE,)))[0]()
    assert (node.slots, node.held_up) == (0, "")


@pytest.mark.parametrize(("tokens", "waiting", "slots"), [(1, 0, 1), (0, 0, 0), (1, 1, 1)])
def test_a_rate_limit_leaves_what_may_begin_now(tokens: int, waiting: int, slots: int) -> None:
    limited = worker(queues=(tasks.RUNS_QUEUE,))
    bucket: Any = limits.TokenBucket(1 / 3600)
    bucket._tokens = tokens
    for number in range(waiting):
        bucket.add(number)
    limited.consumer = SimpleNamespace(task_buckets={tasks.EXECUTE: bucket})
    limited.app.tasks[tasks.EXECUTE].rate_limit = "1/h"
    node = describer(limited)[0]()
    assert (node.slots, node.held_up) == (slots, "its rate is limited to 1/h")
    assert bucket._tokens == tokens  # asking takes none


def test_a_pool_of_threads_can_be_grown_and_shrunk() -> None:
    pool: Any = thread.TaskPool(2)
    thread_pool.make_resizable(pool)
    pool.grow(2)

    def sleep() -> None:
        time.sleep(0.2)

    for _ in range(4):
        pool.apply_async(sleep)
    assert len(pool.executor._threads) == 4
    pool.shrink(3)
    assert pool.num_processes == 1
    with pytest.raises(ValueError, match="One thread has to stay"):
        pool.shrink()
    pool.stop()


def test_a_pool_that_can_do_so_itself_is_left_alone() -> None:
    def grow(n: int) -> None:
        raise AssertionError(n)

    pool: Any = SimpleNamespace(grow=grow, executor=None)
    thread_pool.make_resizable(pool)
    assert pool.grow is grow
    solo = SimpleNamespace()
    thread_pool.make_resizable(solo)
    assert not hasattr(solo, "grow")
