"""What a worker says of its settings before it starts."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest
from celery.concurrency import prefork, solo, thread

from dispatcher.celery_app import start_checks

KNOWN = ("etl-prod", "etl-test", "ml")


@pytest.mark.parametrize("pool", ["gevent", "eventlet"])
def test_pools_of_green_threads_are_refused_with_those_that_can_be_used(pool: str) -> None:
    kind = type("TaskPool", (), {"__module__": f"celery.concurrency.{pool}"})
    with pytest.raises(ValueError, match=f"-P {pool} cannot .* prefork, threads and solo can"):
        start_checks.check_pool(SimpleNamespace(pool_cls=kind))


@pytest.mark.parametrize("pool", [prefork.TaskPool, solo.TaskPool, thread.TaskPool])
def test_all_others_are_taken(pool: type) -> None:
    start_checks.check_pool(SimpleNamespace(pool_cls=pool))


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("etl-prdo", "does not exist in Prefect and is made; did you mean 'etl-prod'"),
        ("unlike", "does not exist in Prefect and is made"),
        ("ml", None),
    ],
)
def test_a_work_pool_that_is_not_there_is_told_with_those_that_look_alike(
    caplog: pytest.LogCaptureFixture, name: str, words: str | None
) -> None:
    caplog.set_level(logging.DEBUG)
    start_checks.check_work_pool(name, KNOWN, is_made=True)
    if words is None:
        assert caplog.messages == []
    else:
        assert words in caplog.messages[0]


@pytest.mark.parametrize(
    ("url", "end"),
    [
        (
            "http://me:hunter2@host:4200",
            "http://host:4200; it ends in /api, such as http://host:4200/api",
        ),
        ("http://host/prefect/api", "http://host/prefect/api; it ends in /api"),
    ],
)
def test_a_wrong_address_is_told_with_a_better_one_and_without_a_password(
    url: str, end: str
) -> None:
    assert start_checks.no_api(url).endswith(end)


@pytest.mark.parametrize(
    ("release", "is_told"),
    [("3.5.9", True), ("3.6.29", False), ("3.9.1", False), ("3.10.0", True), ("", False)],
)
def test_a_release_that_was_not_tested_is_told(
    caplog: pytest.LogCaptureFixture, release: str, is_told: bool
) -> None:
    start_checks.check_release(release)
    assert [release in each and "3.6 to 3.9" in each for each in caplog.messages] == [
        True
    ] * is_told
