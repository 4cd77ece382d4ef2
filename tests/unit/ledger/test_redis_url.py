"""The URLs of a Redis that Sentinels know, and of a cluster."""

from __future__ import annotations

import pytest

from dispatcher.celery_app import configuration
from dispatcher.ledger import redis_connection, redis_url

FULL = "sentinel://me:p%40ss@one:1,two/prime?db=3&sentinel_password=s"


def test_it_names_sentinels_service_and_credentials() -> None:
    assert redis_url.parse_sentinel(FULL) == redis_url.SentinelAddress(
        sentinels=(("one", 1), ("two", 26379)),
        service="prime",
        database=3,
        username="me",
        password="p@ss",
        sentinel_password="s",
    )


def test_nothing_but_sentinel_and_service_is_needed() -> None:
    plain = redis_url.parse_sentinel("sentinel://[::1]:26380/prime")
    assert plain == redis_url.SentinelAddress((("[::1]", 26380),), "prime")


@pytest.mark.parametrize(
    "url",
    [
        "sentinel://one:1",
        "sentinel:///prime",
        "sentinel://one:1,/prime",
        "sentinel://one:1/prime/x",
        "sentinel://me:secret@one:port/prime",
        "sentinel://one:1/prime?db=x",
        "sentinel://one:1/prime?ssl=1",
        "sentinel://one:1/prime?ssl_ca_certs=/ca",
        "rediss+sentinel://one:1/prime?ssl_version=3",
    ],
)
def test_what_is_none_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        redis_url.parse_sentinel(url)
    assert "secret" not in str(refused.value)


def test_secrets_are_in_no_representation() -> None:
    assert "p@ss" not in repr(redis_url.parse_sentinel(FULL))


def test_celery_is_told_the_same_in_its_own_form() -> None:
    assert configuration.celery_url(FULL) == (
        "sentinel://me:p%40ss@one:1/3;sentinel://me:p%40ss@two:26379/3"
    )
    assert configuration.sentinel_options(FULL) == {
        "master_name": "prime",
        "sentinel_kwargs": {"password": "s"},
    }
    assert configuration.sentinel_options("redis://one/0") == {}


def test_by_tls_celery_is_told_of_it_for_redis_and_for_the_sentinels() -> None:
    url = "rediss+sentinel://:p@one/prime?ssl_ca_certs=/ca"
    assert configuration.celery_url(url) == "sentinel://:p@one:26379/0"
    assert configuration.sentinel_options(url)["sentinel_kwargs"] == {
        "ssl": True,
        "ssl_ca_certs": "/ca",
    }
    assert configuration.sentinel_tls(url) == {
        "broker_use_ssl": {"ssl_cert_reqs": "required", "ssl_ca_certs": "/ca"}
    }
    assert configuration.sentinel_tls(FULL) == configuration.sentinel_tls("redis://one/0") == {}


def test_a_cluster_has_nodes_and_credentials() -> None:
    url = "rediss+cluster://me:p%40ss@one:1,two?ssl_ca_certs=/ca"
    found = redis_url.parse_cluster(url)
    assert found == redis_url.ClusterAddress(
        (("one", 1), ("two", 6379)), "me", "p@ss", {"ssl_ca_certs": "/ca"}
    )
    assert "p@ss" not in repr(found)
    assert redis_url.parse_cluster("redis+cluster://one/0") == redis_url.ClusterAddress(
        (("one", 6379),)
    )


@pytest.mark.parametrize(
    "url",
    [
        "redis+cluster://",
        "redis+cluster://one,",
        "redis+cluster://one/1",
        "redis+cluster://me:secret@one:port",
        "redis+cluster://one?db=1",
    ],
)
def test_what_is_no_cluster_is_refused_without_its_secrets(url: str) -> None:
    with pytest.raises(ValueError) as refused:
        redis_url.parse_cluster(url)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    "url", [FULL, "rediss+sentinel://one/prime", "redis+cluster://one", "rediss+cluster://one"]
)
def test_a_client_for_it_connects_when_it_is_first_used(url: str) -> None:
    made = redis_connection.connect_redis(url)
    assert isinstance(made.connection_pool, redis_connection.ForkSafePool)
