"""What a worker says at its start of a Redis that cannot be the ledger, or should not."""

from __future__ import annotations

from pathlib import Path

import pytest
import redis as redis_library

from dispatcher.celery_app import redis_check
from dispatcher.ledger import keys
from tests import redis_server


def silent(text: str) -> None:
    raise AssertionError(text)


def test_one_that_fits_is_said_nothing_of_and_nothing_is_left(redis: redis_library.Redis) -> None:
    before = redis.dbsize()
    redis_check.check(redis, keys.PREFIX, warn=silent)
    assert redis.dbsize() == before


@pytest.fixture
def own(tmp_path_factory: pytest.TempPathFactory) -> redis_server.RedisServer:
    return redis_server.RedisServer(tmp_path_factory.mktemp("own"))


def client_of(server: redis_server.RedisServer, credentials: str = "") -> redis_library.Redis:
    url = f"redis://{credentials}127.0.0.1:{server.port}/0"
    return redis_library.Redis.from_url(url, decode_responses=True)


def test_what_is_wrong_with_a_server_is_told_in_one_sentence(
    own: redis_server.RedisServer, tmp_path: Path
) -> None:
    with own, client_of(own) as admin:
        admin.config_set("maxmemory-policy", "allkeys-lru")
        said: list[str] = []
        redis_check.check(admin, keys.PREFIX, warn=said.append)
        assert "maxmemory-policy allkeys-lru" in said[0]

        admin.execute_command("ACL", "SETUSER", "few", "on", ">p", "~*", "+get", "+set", "+del")
        with (
            client_of(own, "few:p@") as few,
            pytest.raises(redis_check.UnusableRedisError, match=r"lacks a right .*eval"),
        ):
            redis_check.check(few, keys.PREFIX)
        with (
            client_of(own, "few:wrong@") as stranger,
            pytest.raises(redis_check.UnusableRedisError, match="user or password"),
        ):
            redis_check.check(stranger, keys.PREFIX)

        admin.replicaof("127.0.0.1", str(redis_server.free_port()))
        with pytest.raises(redis_check.UnusableRedisError, match="is a replica"):
            redis_check.check(admin, keys.PREFIX)


def test_one_that_is_away_is_waited_for(own: redis_server.RedisServer) -> None:
    said: list[str] = []
    with client_of(own) as client:
        redis_check.check(client, keys.PREFIX, warn=said.append)
    assert "starts without Redis" in said[0]


@pytest.mark.parametrize(("version", "fits"), [("6.0.9", False), ("6.2.1", True), ("8.0", True)])
def test_one_that_is_too_old_is_refused(version: str, fits: bool) -> None:
    info = {"redis_version": version}
    if fits:
        redis_check.look(info, silent)
    else:
        with pytest.raises(redis_check.UnusableRedisError, match=r"6\.0\.9 is too old"):
            redis_check.look(info, silent)
