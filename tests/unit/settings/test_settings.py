from __future__ import annotations

import os

import pytest

from dispatcher import errors, settings

REQUIRED = {"DISPATCHER_WORK_POOLS": "pool", "PREFECT_API_URL": "http://127.0.0.1:4200/api"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment with the required variables and nothing else of ours or Prefect's."""
    for name in list(os.environ):
        if name.startswith(("DISPATCHER_", "PREFECT_")):
            monkeypatch.delenv(name)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_two_required_variables_are_enough(environment: pytest.MonkeyPatch) -> None:
    loaded = settings.load()
    assert loaded.work_pools == ("pool",)
    assert loaded.prefect_api_url == "http://127.0.0.1:4200/api"
    assert loaded.poll_interval == 5.0


@pytest.mark.parametrize("name", REQUIRED)
def test_a_missing_variable_is_named_in_one_line(
    environment: pytest.MonkeyPatch, name: str
) -> None:
    environment.delenv(name)
    with pytest.raises(errors.SettingsError) as caught:
        settings.load()
    assert name in str(caught.value)
    assert "is not set" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("DISPATCHER_WORK_POOLS", "a, b ,", ("a", "b")),
        ("DISPATCHER_WORK_POOLS", '["a,b", "c"]', ("a,b", "c")),
        ("DISPATCHER_WORK_QUEUES", "high,low", ("high", "low")),
        ("DISPATCHER_WORK_QUEUES", "", ()),
    ],
)
def test_names_are_a_comma_separated_or_a_json_list(
    environment: pytest.MonkeyPatch, name: str, value: str, expected: tuple[str, ...]
) -> None:
    environment.setenv(name, value)
    assert getattr(settings.load(), name.removeprefix("DISPATCHER_").lower()) == expected


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DISPATCHER_WORK_POOLS", " , "),
        ("DISPATCHER_WORK_POOLS", "[broken"),
        ("DISPATCHER_POLL_INTERVAL", "0"),
        ("DISPATCHER_POLL_INTERVAL", "often"),
        ("DISPATCHER_PREFETCH_SECONDS", "-1"),
        ("DISPATCHER_STOP_TIMEOUT", "0"),
        ("DISPATCHER_CREATE_POOL_IF_NOT_FOUND", "perhaps"),
        ("DISPATCHER_REDIS_URL", "127.0.0.1"),
        ("DISPATCHER_WORKER_NAME", "a/b"),
        ("DISPATCHER_WORKER_NAME", "50%"),
        ("PREFECT_API_URL", "127.0.0.1:4200/api"),
        ("PREFECT_CLIENT_CUSTOM_HEADERS", "{broken"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    environment: pytest.MonkeyPatch, name: str, value: str
) -> None:
    environment.setenv(name, value)
    with pytest.raises(errors.SettingsError) as caught:
        settings.load()
    assert str(caught.value).startswith(name)
    assert "\n" not in str(caught.value)


def test_secrets_are_in_no_text_form_of_the_settings(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DISPATCHER_REDIS_URL", "redis://:hunter2@127.0.0.1/0")
    environment.setenv("PREFECT_API_KEY", "hunter2")
    environment.setenv("PREFECT_API_AUTH_STRING", "user:hunter2")
    environment.setenv("PREFECT_CLIENT_CUSTOM_HEADERS", '{"X-Token": "hunter2"}')
    loaded = settings.load()
    assert "hunter2" not in repr(loaded) + str(loaded)
    assert loaded.prefect_client_custom_headers == {"X-Token": "hunter2"}


def test_a_rejected_secret_is_not_repeated_in_the_error(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DISPATCHER_REDIS_URL", "hunter2")
    with pytest.raises(errors.SettingsError) as caught:
        settings.load()
    assert "hunter2" not in str(caught.value)
    assert caught.value.__cause__ is None
