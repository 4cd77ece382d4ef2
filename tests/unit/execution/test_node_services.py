"""What executors keep on a worker's node: when it is started, and that it never stops a worker."""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import pytest

from dispatcher import errors, settings
from dispatcher.execution import node_services as node
from dispatcher.prefect_api import schemas
from executors import base


class Recorder(base.BaseExecutor):
    """Notes what its services are asked for."""

    type = "recorder"
    events: ClassVar[list[Any]] = []

    @classmethod
    @contextlib.contextmanager
    def node_services(cls, options: base.NodeOptions) -> Iterator[None]:
        cls.events.append(options)
        yield
        cls.events.append("left")

    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        raise NotImplementedError


class Plain(base.BaseExecutor):
    """Has no services."""

    type = "plain"

    def run(self, flow_run: Any, configuration: Any, started: Any) -> base.ExecutorResult:
        raise NotImplementedError


class Failing(Plain):
    @classmethod
    def node_services(cls, options: base.NodeOptions) -> contextlib.AbstractContextManager[None]:
        raise RuntimeError("as the test wants it")


KINDS: Mapping[str, type[base.BaseExecutor]] = {
    "recorder": Recorder,
    "plain": Plain,
    "failing": Failing,
}


@pytest.fixture
def events() -> Iterator[list[Any]]:
    Recorder.events.clear()
    yield Recorder.events
    Recorder.events.clear()


def services(pools: Mapping[str, str | errors.ApiError], **options: Any) -> node.NodeServices:
    """Services for pools of these types, or that cannot be read."""

    def read_pool(name: str) -> schemas.WorkPool:
        found = pools[name]
        if isinstance(found, errors.ApiError):
            raise found
        return schemas.WorkPool(id=uuid.uuid4(), name=name, type=found)

    values = {"prefect_api_url": "http://127.0.0.1:4200/api", **options}
    return node.NodeServices(
        options=settings.Settings(work_pools=tuple(pools), **values),
        executor_types=lambda: sorted(KINDS),
        find_executor=KINDS.get,
        read_pool=read_pool,
    )


def test_services_are_started_once_for_each_type_and_end_with_the_worker(
    events: list[Any],
) -> None:
    made = services({"a": "recorder", "b": "recorder", "c": "plain"}, start="warm", preload=("m",))

    made.enter()
    assert events == [base.NodeOptions(start="warm", preload=("m",), eager=True)]
    made.leave()
    made.leave()

    assert events[1:] == ["left"]


def test_a_pool_that_does_not_exist_yet_will_be_of_the_type_in_the_settings(
    events: list[Any],
) -> None:
    services({"a": errors.ObjectNotFound(detail="no")}, pool_type="recorder").enter()

    assert events == [base.NodeOptions(eager=True)]


def test_without_prefect_the_services_wait_until_they_are_used(events: list[Any]) -> None:
    services({"a": errors.ApiUnreachable()}).enter()

    assert events == [base.NodeOptions(eager=False)]


def test_a_type_without_an_executor_and_failing_services_harm_nothing(
    events: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    services({"a": "failing", "b": "none such", "c": "recorder"}).enter()

    assert len(events) == 1
    assert "'failing'" in caplog.text
