"""The status of the fleet: what is found out, also without a part, and what it looks like."""

from __future__ import annotations

import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest
import redis as redis_library
from click.testing import CliRunner
from rich import console as consoles

from dispatcher import cli
from dispatcher.cli import status as command
from dispatcher.ledger import claims, fleet, last_polls, redis_ledger
from dispatcher.operations import status
from dispatcher.prefect_api import client, schemas
from dispatcher.testing import prefect_api, prefect_objects
from tests import redis_server
from tests.unit import ledgers

CONTROL = fleet.Node("control@web1", 7, slots=0, serves_control=True, version="1")
RUNS = fleet.Node("runs@web1", 8, slots=3, serves_control=False, version="1")


@pytest.fixture
def no_api() -> Iterator[client.PrefectClient]:
    """A client of an API that is away."""
    prefect = prefect_api.FakePrefect()
    prefect.faults.append(prefect_api.Fault(prefect_api.FaultKind.REQUEST_LOST, times=1000))
    connection = prefect.client(sleep=lambda _seconds: None)
    yield connection
    connection.transport.close()


def claim(book: redis_ledger.RedisLedger, *, pool: str = "a") -> claims.NewClaim:
    new = claims.NewClaim(uuid4(), uuid4())
    assert book.open([new], pool=pool, transition_id=uuid4(), slots=100)
    return new


def hold(book: redis_ledger.RedisLedger, node: str) -> claims.Lease:
    new = claim(book)
    assert book.accept(new)
    lease = book.acquire(new, owner=f"{node}#{uuid4()}")
    assert isinstance(lease, claims.Lease)
    return lease


# What is found out


def test_pools_have_type_status_queues_and_last_poll(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
) -> None:
    objects.pool("a")
    objects.pool("b", is_paused=True)
    objects.queue("a", "first", priority=1)
    api.send_worker_heartbeat("a", "w", 30)
    last_polls.LastPolls(redis).record("a")

    found = status.get_status(api=api, redis=redis, pools=["a", "b"])

    one, other = found.pools
    assert (one.name, one.type, one.status) == ("a", "process", "READY")
    assert one.last_poll_seconds is not None
    assert one.last_poll_seconds < 5
    assert one.work_queues is not None
    assert [(queue.name, queue.priority) for queue in one.work_queues] == [
        ("first", 1),
        ("default", 2),
    ]
    assert (other.name, other.status, other.last_poll_seconds) == ("b", "PAUSED", None)


def test_only_the_queues_that_are_served_are_named_and_missing_ones_are_a_problem(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
) -> None:
    objects.pool("a")
    objects.queue("a", "fast")

    found = status.get_status(api=api, redis=redis, pools=["a"], work_queues=["fast", "slow"])

    assert found.pools[0].work_queues is not None
    assert [queue.name for queue in found.pools[0].work_queues] == ["fast"]
    assert "Work queue 'slow' of work pool 'a' does not exist" in found.problems


def test_missing_pool_is_a_problem_and_harms_no_other(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
) -> None:
    objects.pool("b")
    found = status.get_status(api=api, redis=redis, pools=["a", "b"])
    assert found.problems[0] == "Work pool 'a' does not exist"
    assert [pool.type for pool in found.pools] == [None, "process"]


def test_workers_have_their_used_and_free_slots(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
    book: redis_ledger.RedisLedger,
) -> None:
    objects.pool("a")
    for node in (CONTROL, RUNS):
        fleet.Fleet(redis).report(node)
    hold(book, RUNS.name)
    hold(book, RUNS.name)
    hold(book, "gone@web2")
    claim(book)

    found = status.get_status(api=api, redis=redis, pools=["a"])

    assert found.workers is not None
    assert [(each.name, each.slots, each.used, each.free) for each in found.workers] == [
        ("control@web1", 0, 0, 0),
        ("runs@web1", 3, 2, 1),
    ]
    assert found.claims is not None
    assert found.claims[claims.Stage.HELD] == 3
    assert found.claims[claims.Stage.OPENED] == 1
    assert (found.slots, found.free_slots) == (3, 0)
    assert found.problems == ()


def test_no_worker_is_a_problem(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
) -> None:
    objects.pool("a")
    found = status.get_status(api=api, redis=redis, pools=["a"])
    assert found.workers == ()
    assert found.problems == ("No worker is alive",)


def test_oldest_claim_that_no_worker_has_taken_waits_longest(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
    book: redis_ledger.RedisLedger,
) -> None:
    objects.pool("a")
    hold(book, RUNS.name)
    claim(book)
    oldest = claim(book)
    ledgers.age(redis, oldest.flow_run_id, 2)

    waiting = status.get_status(api=api, redis=redis, pools=["a"]).oldest_waiting

    assert waiting is not None
    assert (waiting.flow_run_id, waiting.waits_for) == (oldest.flow_run_id, "a worker")
    assert 0 <= waiting.seconds < 5


def test_late_run_that_was_due_first_waits_longest(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
    book: redis_ledger.RedisLedger,
) -> None:
    objects.pool("a")
    deployment = objects.deployment("a")
    first, second = (late_run(objects, deployment, day) for day in (1, 2))
    late_run(objects, objects.deployment(objects.pool("not served").name), 1)
    claim(book)

    waiting = status.get_status(api=api, redis=redis, pools=["a"]).oldest_waiting

    assert waiting is not None
    assert waiting.flow_run_id == first != second
    assert (waiting.waits_for, waiting.pool) == ("a claim", "a")
    assert waiting.seconds > 3600


def late_run(
    objects: prefect_objects.PrefectObjects, deployment: schemas.Deployment, day: int
) -> UUID:
    """A run that was due on a day of long ago, renamed as a server renames it."""
    details = {"scheduled_time": f"2024-01-0{day}T00:00:00Z"}
    state = {"type": "SCHEDULED", "name": "Late", "state_details": details}
    return objects.run(deployment, state=state).id


def test_looking_on_does_not_poll(
    prefect: prefect_api.FakePrefect,
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
) -> None:
    objects.pool("a")
    status.get_status(api=api, redis=redis, pools=["a"])
    assert not [route for _, route in prefect.requests if "scheduled" in route]


# Without a part


def test_without_prefect_the_fleet_is_shown(
    no_api: client.PrefectClient, redis: redis_library.Redis
) -> None:
    fleet.Fleet(redis).report(RUNS)
    last_polls.LastPolls(redis).record("a")

    found = status.get_status(api=no_api, redis=redis, pools=["a"])

    assert found.slots == 3
    assert found.pools[0].last_poll_seconds is not None
    assert found.pools[0].status is None
    assert len(found.problems) == 1
    assert found.problems[0].startswith("Prefect API: ")


def test_without_redis_the_pools_are_shown(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    no_redis: redis_library.Redis,
) -> None:
    objects.pool("a")

    found = status.get_status(api=api, redis=no_redis, pools=["a"])

    assert found.pools[0].type == "process"
    assert (found.workers, found.claims, found.slots, found.free_slots) == (None,) * 4
    assert len(found.problems) == 1
    assert found.problems[0].startswith("Redis: ")


# What it looks like


def test_pools_that_only_other_workers_serve_are_shown_as_well(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
) -> None:
    for pool in ("a", "z"):
        objects.pool(pool)
    fleet.Fleet(redis).report(CONTROL)
    fleet.Fleet(redis).report(dataclasses.replace(RUNS, pools=("z",)))

    found = status.get_status(api=api, redis=redis, pools=["a"], work_queues=["default"])

    assert [(pool.name, pool.type, pool.slots) for pool in found.pools] == [
        ("a", "process", 0),
        ("z", "process", RUNS.slots),
    ]
    assert found.problems == ()


def test_runs_are_shown_with_what_they_use_the_largest_first(
    api: client.PrefectClient, redis: redis_library.Redis, book: redis_ledger.RedisLedger
) -> None:
    small, unmeasured, large = (hold(book, RUNS.name) for _ in range(3))
    claim(book)
    book.renew(small, memory=50 * 2**20)
    book.renew(large, memory=3000 * 2**20)

    found = status.get_status(api=api, redis=redis, pools=["a"])

    assert found.runs is not None
    expected = [(large, 3000 * 2**20), (small, 50 * 2**20), (unmeasured, None)]
    assert [(run.flow_run_id, run.memory) for run in found.runs] == [
        (lease.flow_run_id, memory) for lease, memory in expected
    ]
    assert {(run.pool, run.worker) for run in found.runs} == {("a", RUNS.name)}
    text = shown(found)
    assert re.search(rf"{large.flow_run_id} +a +{RUNS.name} +\d s +3,000 MiB", text)
    assert re.search(rf"{unmeasured.flow_run_id} +a +{RUNS.name} +\d s +\?", text)


def test_the_table_ends_after_the_largest_runs_and_says_how_many_there_are() -> None:
    runs = tuple(
        status.HeldRun(uuid4(), "a", "runs@web1", 1.0, 2**30) for _ in range(command.SHOWN_RUNS + 3)
    )
    text = shown(status.Status((), (), {}, None, (), runs=runs))
    assert text.count("1,024 MiB") == command.SHOWN_RUNS
    assert "and 3 more runs" in text


def shown(found: status.Status) -> str:
    text = io.StringIO()
    console = consoles.Console(file=text, width=100, highlight=False)
    for part in command.render(found):
        console.print(part)
    return text.getvalue()


def test_table_shows_every_part() -> None:
    queues = (
        status.WorkQueueStatus("default", 1, "READY"),
        status.WorkQueueStatus("slow", 2, "PAUSED"),
    )
    pools = (
        status.WorkPoolStatus("a [b]", "process", "READY", queues, 3.2),
        status.WorkPoolStatus("unknown"),
    )
    workers = (status.WorkerStatus("all@web1", 1, "1", serves_control=True, slots=3, used=1),)
    counted = {claims.Stage.HELD: 1, claims.Stage.PENDING: 1}
    waiting = status.WaitingRun(uuid4(), "blue-otter", "a [b]", "a claim", 200.0)

    text = shown(status.Status(pools, workers, counted, waiting, ("Redis: [Errno 1]",), used=2))

    assert "a [b]       process   READY    3 s ago     default, slow (PAUSED)" in text
    assert "all@web1   control, runs   ?                3      1      2" in text
    assert "Slots: 1 of 3 free  Claims: 1 held, 1 pending" in text
    assert f"Waits longest: blue-otter ({waiting.flow_run_id}) of a [b], 3 min for a claim" in text
    assert "Redis: [Errno 1]" in text


def test_table_without_anything_says_so() -> None:
    text = shown(status.Status((), None, None, None, ("Redis: away",)))
    assert "Slots: ?  Claims: ?" in text


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.4, "0 s"), (119, "119 s"), (125, "2 min"), (7200, "2 h"), (400_000, "5 d")],
)
def test_durations_are_told_as_people_do(seconds: float, words: str) -> None:
    assert command.in_words(seconds) == words


# The command


@pytest.fixture
def invoke(
    valkey_server: redis_server.RedisServer, redis: redis_library.Redis
) -> Callable[..., tuple[int, str]]:
    def invoke(*arguments: str, api_url: str) -> tuple[int, str]:
        environment = {
            "DISPATCHER_REDIS_URL": valkey_server.url,
            "DISPATCHER_WORK_POOLS": "a",
            "PREFECT_API_URL": api_url,
            "COLUMNS": "120",
        }
        result = CliRunner().invoke(cli.main, ["status", *arguments], env=environment)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        return result.exit_code, result.output

    return invoke


def test_command_exits_with_0_if_nothing_is_missing(
    prefect: prefect_api.FakePrefect,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
    invoke: Callable[..., tuple[int, str]],
) -> None:
    objects.pool("a")
    fleet.Fleet(redis).report(RUNS)
    with prefect.serve() as api_url:
        code, output = invoke(api_url=api_url)
        assert code == 0
        assert "runs@web1" in output

        code, output = invoke("--output", "json", api_url=api_url)
    assert code == 0
    found = json.loads(output)
    keys = {"pools", "workers", "runs", "slots", "claims", "oldest_waiting", "problems"}
    assert set(found) == keys
    assert found["slots"] == {"total": 3, "free": 3}
    assert found["workers"][0]["free"] == 3
    assert found["claims"]["held"] == 0
    assert found["problems"] == []


def test_json_tells_of_the_run_that_waits(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
    book: redis_ledger.RedisLedger,
) -> None:
    objects.pool("a")
    waiting = claim(book)
    found = status.get_status(api=api, redis=redis, pools=["a"])
    values = json.loads(json.dumps(found.to_json()))
    assert values["oldest_waiting"]["flow_run_id"] == str(waiting.flow_run_id)
    assert values["pools"][0]["work_queues"][0]["name"] == "default"


def test_command_without_prefect_says_what_is_missing_and_exits_with_1(
    redis: redis_library.Redis, invoke: Callable[..., tuple[int, str]]
) -> None:
    fleet.Fleet(redis).report(RUNS)
    code, output = invoke(api_url="http://127.0.0.1:1/api")
    assert code == 1
    assert "runs@web1" in output
    assert "Prefect API: " in output
    assert "Traceback" not in output


def test_every_key_of_the_json_is_documented_in_the_help() -> None:
    output = CliRunner().invoke(cli.main, ["status", "--help"]).output
    empty = status.Status((), (), {}, None, ()).to_json()
    names = {*empty, *status.WorkerStatus.__annotations__, *status.WaitingRun.__annotations__}
    names |= {*status.WorkPoolStatus.__annotations__, *status.WorkQueueStatus.__annotations__}
    assert [name for name in sorted(names) if name not in output] == []


def test_slots_that_wait_for_runs_without_a_slot_are_a_problem(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
    book: redis_ledger.RedisLedger,
) -> None:
    deployment = objects.deployment(objects.pool("a").name)
    fleet.Fleet(redis).report(fleet.Node("w@h", 1, slots=1, serves_control=True, version="1"))
    parent = objects.run(deployment)
    new = claims.NewClaim(parent.id, uuid4())
    assert book.open([new], pool="a", transition_id=uuid4(), slots=1)
    assert status.get_status(api=api, redis=redis, pools=["a"]).problems == ()

    child = objects.child_run(parent, deployment)
    long_due = (datetime.now(UTC) - timedelta(hours=1)).isoformat()
    objects.force(child.id, schemas.StateType.SCHEDULED, scheduled_time=long_due)

    (problem,) = status.get_status(api=api, redis=redis, pools=["a"]).problems
    assert "every slot (1) is held by a run whose child runs are due" in problem


def test_pools_show_the_slots_of_the_workers_that_serve_them(
    api: client.PrefectClient,
    objects: prefect_objects.PrefectObjects,
    redis: redis_library.Redis,
    book: redis_ledger.RedisLedger,
) -> None:
    for pool in ("a", "b", "c"):
        objects.pool(pool)
    workers = fleet.Fleet(redis)
    for name, pools, slots in (("both", ("a", "b"), 2), ("only-a", ("a",), 3), ("control", (), 0)):
        workers.report(fleet.Node(name, 1, slots, serves_control=True, version="1", pools=pools))
    new = claims.NewClaim(uuid4(), uuid4())
    assert book.open([new], pool="a", transition_id=uuid4(), slots=3, node="only-a", weight=2)
    found = status.get_status(api=api, redis=redis, pools=["a", "b", "c"])
    assert [(pool.slots, pool.free_slots, pool.workers) for pool in found.pools] == [
        (5, 3, ("both", "only-a")),
        (2, 2, ("both",)),
        (0, 0, ()),
    ]
    assert (found.slots, found.free_slots) == (5, 3)
    assert found.problems == ()


def test_due_runs_that_no_worker_serves_are_a_problem(
    api: client.PrefectClient, objects: prefect_objects.PrefectObjects, redis: redis_library.Redis
) -> None:
    for pool in ("a", "b"):
        late = {"type": "SCHEDULED", "name": "Late"}
        objects.run(objects.deployment(objects.pool(pool).name), state=late)
    node = fleet.Node("w", 1, 1, serves_control=True, version="1", pools=("a",))
    fleet.Fleet(redis).report(node)
    found = status.get_status(api=api, redis=redis, pools=["a", "b"])
    assert found.problems == ("Work pool 'b' has due runs and no worker that serves it",)
