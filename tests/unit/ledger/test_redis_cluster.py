"""A ledger in a real Redis Cluster: whoever has its keys is found, before and after they move."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis as redis_library

from dispatcher.celery_app import redis_check
from dispatcher.ledger import fleet, keys, redis_connection, redis_primary
from tests import redis_server, redis_topologies

NODE = fleet.Node("runs@host", 1, slots=2, serves_control=False, version="1")
KEY = f"{keys.PREFIX}key"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis_topologies.Cluster]:
    if reason := redis_topologies.missing():
        pytest.skip(reason)
    with redis_topologies.Cluster(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


def plain(port: int) -> str:
    return f"redis://127.0.0.1:{port}"


def test_one_node_is_enough_to_find_who_has_the_ledger(cluster: redis_topologies.Cluster) -> None:
    for port in cluster.ports:
        with redis_connection.connect_redis(f"redis+cluster://127.0.0.1:{port}") as connection:
            redis_check.check(connection, keys.PREFIX, cluster=True)
            fleet.Fleet(connection).report(NODE)
            assert fleet.Fleet(connection).names() == {NODE.name}


def test_nodes_that_are_away_are_passed_over(cluster: redis_topologies.Cluster) -> None:
    away = f"127.0.0.1:{redis_server.free_port()}"
    url = f"redis+cluster://{away},127.0.0.1:{cluster.ports[0]}"
    with redis_connection.connect_redis(url) as connection:
        assert connection.ping()
    with (
        redis_connection.connect_redis(f"redis+cluster://{away}") as nowhere,
        pytest.raises(redis_library.ConnectionError, match="no node of the cluster"),
    ):
        nowhere.ping()


def test_each_node_that_is_taken_for_a_plain_redis_is_refused(
    cluster: redis_topologies.Cluster,
) -> None:
    for port in cluster.ports:
        with (
            redis_connection.connect_once(plain(port), timeout_seconds=5) as connection,
            pytest.raises(redis_check.UnusableRedisError, match=r"redis\+cluster://"),
        ):
            redis_check.check(connection, keys.PREFIX)


def test_a_single_redis_may_be_written_like_a_cluster(
    valkey_server: redis_server.RedisServer,
) -> None:
    url = f"redis+cluster://127.0.0.1:{valkey_server.port}"
    with redis_connection.connect_redis(url) as connection:
        assert connection.ping()


def test_connections_follow_a_ledger_that_moves(cluster: redis_topologies.Cluster) -> None:
    with redis_connection.connect_redis(cluster.url) as connection:
        connection.set(KEY, "before")
        cluster.move_slot()
        assert connection.get(KEY) == "before"
        cluster.move_slot()
        pipeline = connection.pipeline()
        pipeline.set(KEY, "after")
        pipeline.get(KEY)
        assert pipeline.execute() == [True, "after"]
        cluster.move_slot()
        script = connection.register_script("return redis.call('GET', KEYS[1])")
        assert script(keys=[KEY]) == "after"


def test_a_node_without_a_name_is_the_one_that_was_asked() -> None:
    class Asked(redis_library.Redis):
        def exists(self, *_names: object) -> int:
            raise redis_library.exceptions.MovedError("13365 :7001")

    found = redis_primary.find_node([("one", 7000)], KEY, lambda _address: Asked())
    assert found == ("one", 7001)


def test_connections_follow_a_failover(tmp_path: Path) -> None:
    if reason := redis_topologies.missing():
        pytest.skip(reason)
    with (
        redis_topologies.Cluster(tmp_path) as cluster,
        redis_connection.connect_redis(cluster.url) as connection,
    ):
        connection.set(KEY, "before")
        connection.wait(1, 5000)
        cluster.kill_primary()
        assert connection.get(KEY) == "before"
