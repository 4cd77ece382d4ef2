from __future__ import annotations

import os
import signal
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from dispatcher.prefect_api import schemas
from dispatcher.standalone import demo, environment, errors, samples, signals, stack, valkey
from dispatcher.standalone.component import Component
from dispatcher.standalone.directory import DataDirectory


def components(tmp_path: Path, options: stack.Options) -> dict[str, Component]:
    own = stack.Stack(DataDirectory(tmp_path), options, environ={"PATH": "/bin"})
    return {component.name: component for component in own.components()}


def test_variables_that_point_to_other_servers_are_left_out() -> None:
    foreign = {
        "BROKER_URL": "redis://elsewhere",
        "CELERY_BROKER_URL": "redis://elsewhere",
        "FLOWER_UNAUTHENTICATED_API": "true",
        "PREFECT_API_KEY": "pnu_secret",
        "PREFECT_API_URL": "https://api.prefect.cloud",
        "PREFECT_PROFILE": "work",
        "PREFECT_SERVER_DATABASE_CONNECTION_URL": "postgresql://elsewhere",
        "PREFECT__FLOW_RUN_ID": "1",
    }
    kept = {"PATH": "/bin", "DISPATCHER_PRELOAD": "pandas", "PREFECT_LOGGING_LEVEL": "DEBUG"}

    own = environment.own({**foreign, **kept})

    assert not foreign.keys() & own.keys()
    assert kept.items() <= own.items()


def test_loopback_is_never_reached_through_a_proxy() -> None:
    own = environment.own({"no_proxy": "intranet"})

    assert own["no_proxy"] == "intranet,127.0.0.1,localhost"
    assert own["NO_PROXY"] == "127.0.0.1,localhost"


def test_every_component_is_started_and_stopped(tmp_path: Path) -> None:
    names = list(components(tmp_path, stack.Options()))

    assert sorted(names) == sorted(stack.STOP_ORDER)


def test_components_come_after_those_that_they_need(tmp_path: Path) -> None:
    started: set[str] = set()
    for component in components(tmp_path, stack.Options()).values():
        assert set(component.needs) <= started
        started.add(component.name)


def test_password_is_in_no_command_line(tmp_path: Path) -> None:
    password = DataDirectory(tmp_path).password()

    for component in components(tmp_path, stack.Options()).values():
        assert password not in " ".join(component.command)
        assert password not in repr(component)
        assert password not in component.address


def test_redis_wants_the_password_and_listens_on_the_loopback_interface_only() -> None:
    lines = valkey.configuration(1234, "secret").splitlines()

    assert "bind 127.0.0.1" in lines
    assert "requirepass secret" in lines
    assert "appendonly yes" in lines


def test_everything_listens_on_the_loopback_interface_only(tmp_path: Path) -> None:
    own = components(tmp_path, stack.Options())

    assert "--address=127.0.0.1" in own["flower"].command
    assert own["prefect"].command[-4:-2] == ("--host", "127.0.0.1")


def test_options_reach_the_components(tmp_path: Path) -> None:
    options = stack.Options(pools=("a", "b"), concurrency=7, grace_seconds=9.0)

    runs = components(tmp_path, options)["runs"]

    assert runs.environment["DISPATCHER_WORK_POOLS"] == "a,b"
    assert runs.command[-1] == "7"
    assert runs.stop[0].signal == signal.SIGTERM
    assert runs.stop[0].seconds == 9.0


def test_redis_of_the_system_is_preferred() -> None:
    found = {"redis-server": "/usr/bin/redis-server"}

    assert valkey.find_binary(which=found.get) == "/usr/bin/redis-server"


def test_redis_of_the_extra_is_used_otherwise() -> None:
    binary = Path(valkey.find_binary(which=lambda _name: None))

    assert os.access(binary, os.X_OK)


def test_without_any_redis_the_error_says_what_to_install() -> None:
    with pytest.raises(errors.MissingExtra, match=r"redis-server.*\[standalone\]"):
        valkey.find_binary(which=lambda _name: None, find_package=lambda _name: None)


def test_signals_are_counted_while_the_context_lasts() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with signals.StopRequests() as stop_requests:
        assert stop_requests() == 0
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)
        assert stop_requests() == 2

    assert signal.getsignal(signal.SIGTERM) == before


def test_flows_of_all_samples_exist() -> None:
    text = (samples.directory() / samples.FLOWS_FILE).read_text()

    assert len(samples.SAMPLES) == 12
    for sample in samples.SAMPLES:
        assert f"\ndef {sample.flow}(" in text


def test_samples_show_what_can_go_wrong() -> None:
    expected = {sample.expected for sample in samples.SAMPLES}

    assert expected == schemas.TERMINAL_STATES


def finished_run(*steps: tuple[schemas.StateType, float]) -> demo.Run:
    began = datetime(2026, 1, 1, tzinfo=UTC)
    states = [
        schemas.State(type=kind, name=kind.capitalize(), timestamp=began + timedelta(seconds=at))
        for kind, at in steps
    ]
    return demo.Run(samples.Sample("one", "hello", {"name": "Ada"}), uuid.uuid4(), states)


def test_durations_of_a_run_come_from_its_history() -> None:
    kinds = schemas.StateType
    run = finished_run(
        (kinds.SCHEDULED, 0.0),
        (kinds.PENDING, 1.0),
        (kinds.RUNNING, 3.5),
        (kinds.SCHEDULED, 4.0),  # AwaitingRetry
        (kinds.RUNNING, 5.0),
        (kinds.COMPLETED, 8.0),
    )

    assert (run.waited_seconds, run.starting_seconds, run.running_seconds) == (1.0, 2.5, 4.5)
    assert run.is_as_expected
    assert run.sample.call == "hello(name='Ada')"
    demo.check([run])


def test_run_that_has_not_started_has_no_durations() -> None:
    run = finished_run((schemas.StateType.SCHEDULED, 0.0))

    assert (run.waited_seconds, run.starting_seconds, run.running_seconds) == (None, None, None)
    assert not run.is_over


def test_unexpected_end_fails_the_demo_and_names_the_run() -> None:
    crashed = finished_run((schemas.StateType.CRASHED, 0.0))

    with pytest.raises(errors.DemoFailed, match="one is Crashed instead of Completed"):
        demo.check([crashed])
