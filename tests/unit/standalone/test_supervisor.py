from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from dispatcher.standalone import errors, supervisor
from dispatcher.standalone.component import Component, StopStep
from dispatcher.standalone.process import LOG_BYTES_KEPT, Process
from dispatcher.standalone.supervisor import Supervisor
from tests.waiting import wait_for

STUBBORN = "trap '' TERM; echo up; while :; do sleep 0.05; done"


class Lab:
    """Builds components that write a file when they are up, and one supervisor of them."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.lines: list[str] = []
        self.stop_requests = 0
        self.supervisors: list[Supervisor] = []

    def component(
        self,
        name: str,
        script: str = "sleep 600",
        *,
        needs: tuple[str, ...] = (),
        is_ready: Callable[[], bool] = lambda: True,
        ready_seconds: float = 20.0,
        stop: tuple[StopStep, ...] = (StopStep(signal.SIGTERM, 20.0),),
    ) -> Component:
        # "exec" keeps it to one process, which gets the signals itself.
        return Component(
            name=name,
            command=("sh", "-c", script if ";" in script else f"exec {script}"),
            environment={"PATH": os.environ["PATH"]},
            directory=self.directory,
            is_ready=is_ready,
            ready_seconds=ready_seconds,
            stop=stop,
            needs=needs,
        )

    def supervise(self, *components: Component) -> Supervisor:
        created = Supervisor(
            components,
            self.directory,
            report=self.lines.append,
            stop_requests=lambda: self.stop_requests,
        )
        self.supervisors.append(created)
        return created

    def log(self, name: str) -> str:
        path = self.directory / f"{name}.log"
        return path.read_text() if path.exists() else ""


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Lab]:
    created = Lab(tmp_path)
    yield created
    for each in created.supervisors:
        for process in each.processes:
            if process.is_running:
                process.kill()


def held_process(process: Process) -> psutil.Process:
    """The component itself, behind its tether."""
    children = wait_for(
        lambda: psutil.Process(process.pid).children(), seconds=20, what="the process is there"
    )
    return children[0]


def test_component_starts_when_those_that_it_needs_are_ready(lab: Lab) -> None:
    looks = iter([False, False, True])
    second = lab.component("second", "date +%s.%N; sleep 600", needs=("first",))
    first = lab.component("first", is_ready=lambda: next(looks, True))
    own = lab.supervise(first, second)

    own.start()

    assert [line.split(" is ready")[0] for line in lab.lines] == ["first", "second"]
    assert all(process.is_running for process in own.processes)


def test_components_that_need_nothing_start_together(lab: Lab) -> None:
    def other_runs() -> bool:
        return own.processes[1].is_running

    own = lab.supervise(lab.component("one", is_ready=other_runs), lab.component("other"))

    own.start()

    assert lab.lines[0].startswith("one is ready")


def test_component_that_ends_at_once_fails_the_start_with_its_last_words(lab: Lab) -> None:
    own = lab.supervise(
        lab.component("database", "echo no space left; exit 3", is_ready=lambda: False)
    )

    with pytest.raises(errors.ComponentFailed) as caught:
        own.start()

    assert "database ended with exit code 3" in str(caught.value)
    assert str(lab.directory / "database.log") in str(caught.value)
    assert str(caught.value).endswith("no space left")


def test_component_that_is_not_ready_in_time_fails_the_start(lab: Lab) -> None:
    slow = lab.component("slow", "sleep 600", is_ready=lambda: False, ready_seconds=0.3)

    with pytest.raises(errors.ComponentFailed, match="slow was not ready after 0 s"):
        lab.supervise(slow).start()


def test_component_that_dies_while_others_start_fails_the_start(lab: Lab) -> None:
    own = lab.supervise(
        lab.component("early", "sleep 0.3; exit 1"),
        lab.component("late", is_ready=lambda: False),
    )

    with pytest.raises(errors.ComponentFailed, match="early ended with exit code 1"):
        own.start()


def test_last_words_of_an_earlier_start_are_not_repeated(lab: Lab) -> None:
    (lab.directory / "silent.log").write_text("from yesterday\n")

    with pytest.raises(errors.ComponentFailed, match=r":\n\(nothing\)$"):
        lab.supervise(lab.component("silent", "exit 1;", is_ready=lambda: False)).start()


def test_request_to_stop_ends_the_start(lab: Lab) -> None:
    lab.stop_requests = 1

    with pytest.raises(errors.StopRequested):
        lab.supervise(lab.component("one", is_ready=lambda: False)).start()


def test_request_to_stop_ends_the_watch(lab: Lab) -> None:
    own = lab.supervise(lab.component("one"))
    own.start()
    lab.stop_requests = 1

    own.run()

    assert own.processes[0].is_running


def test_killed_component_is_started_again_and_reported(lab: Lab) -> None:
    own = lab.supervise(lab.component("worker"))
    own.start()
    first = own.processes[0].pid
    held_process(own.processes[0]).kill()

    def is_back() -> bool:
        own.watch()
        return "worker is back" in lab.lines[-1]

    wait_for(is_back, seconds=20, what="the component is back")

    assert lab.lines[-2] == "worker ended with exit code 137; starting it again in 0.5 s"
    assert own.processes[0].is_running
    assert own.processes[0].pid != first


def test_component_that_does_not_become_ready_again_is_started_once_more(lab: Lab) -> None:
    ready = [True]
    own = lab.supervise(lab.component("worker", is_ready=lambda: ready[0], ready_seconds=0.2))
    own.start()
    held_process(own.processes[0]).kill()
    ready[0] = False

    def is_given_up() -> bool:
        own.watch()
        return any("was not ready" in line for line in lab.lines)

    wait_for(is_given_up, seconds=20, what="the component is late")
    assert not own.processes[0].is_running
    ready[0] = True

    def is_back() -> bool:
        own.watch()
        return "is back" in lab.lines[-1]

    wait_for(is_back, seconds=20, what="the component is back")


def test_component_that_keeps_dying_is_given_up(lab: Lab) -> None:
    times = iter(range(10_000))
    own = Supervisor(
        [lab.component("worker", "echo again; sleep 0.2")],
        lab.directory,
        report=lab.lines.append,
        clock=lambda: float(next(times)) / 50,  # so that the back-offs pass quickly
        sleep=lambda _seconds: None,
    )
    lab.supervisors.append(own)
    own.start()

    def has_failed() -> str:
        try:
            own.watch()
        except errors.ComponentFailed as error:
            return str(error)
        return ""

    message = wait_for(has_failed, seconds=60, what="the component is given up", every=0.01)

    assert "worker ended with exit code 0, for the 5th time in a row" in message
    assert message.endswith("again")
    assert len([line for line in lab.lines if "starting it again" in line]) == (
        supervisor.DEATHS_ALLOWED
    )


def test_death_after_a_long_life_counts_as_the_first(lab: Lab) -> None:
    now = [0.0]
    own = Supervisor(
        [lab.component("worker")],
        lab.directory,
        report=lab.lines.append,
        clock=lambda: now[0],
        sleep=lambda _seconds: None,
    )
    lab.supervisors.append(own)
    own.start()
    for _ in range(supervisor.DEATHS_ALLOWED + 2):
        held_process(own.processes[0]).kill()
        wait_for(lambda: not own.processes[0].is_running, seconds=20, what="it is dead")
        now[0] += supervisor.DEATHS_WINDOW_SECONDS + 1
        own.watch()
        now[0] += supervisor.FIRST_BACK_OFF_SECONDS
        own.watch()

    assert own.processes[0].is_running


def test_components_are_stopped_in_the_order_given(lab: Lab) -> None:
    own = lab.supervise(lab.component("one"), lab.component("two"), lab.component("three"))
    own.start()
    lab.lines.clear()

    own.stop(["two", "three", "one"])

    assert lab.lines == ["stopping two", "stopping three", "stopping one"]
    assert [process.exit_code for process in own.processes] == [143, 143, 143]


def test_component_that_is_not_running_is_not_stopped(lab: Lab) -> None:
    own = lab.supervise(lab.component("one"), lab.component("two"))

    own.stop(["two", "one"])

    assert lab.lines == []


def test_stubborn_component_gets_the_next_signal_in_time(lab: Lab) -> None:
    steps = (StopStep(signal.SIGTERM, 0.2), StopStep(signal.SIGQUIT, 20.0))
    own = lab.supervise(lab.component("stubborn", STUBBORN, stop=steps))
    own.start()
    wait_for(lambda: "up" in lab.log("stubborn"), seconds=20, what="it ignores SIGTERM")

    own.stop(["stubborn"])

    assert own.processes[0].exit_code == 128 + signal.SIGQUIT


def test_component_that_ignores_every_signal_is_killed(lab: Lab) -> None:
    own = lab.supervise(lab.component("stubborn", STUBBORN, stop=(StopStep(signal.SIGTERM, 0.2),)))
    own.start()
    wait_for(lambda: "up" in lab.log("stubborn"), seconds=20, what="it ignores SIGTERM")

    own.stop(["stubborn"])

    assert own.processes[0].exit_code == 137


def test_user_in_a_hurry_cuts_the_wait_short(lab: Lab) -> None:
    steps = (StopStep(signal.SIGTERM, 600.0), StopStep(signal.SIGQUIT, 20.0))
    component = lab.component("stubborn", STUBBORN, stop=steps)
    process = Process(component, lab.directory)
    process.start()
    wait_for(lambda: "up" in lab.log("stubborn"), seconds=20, what="it ignores SIGTERM")
    requests = iter([1, 1, 1])  # the third look finds a second request

    process.stop(hurry=lambda: next(requests, 2))

    assert process.exit_code == 128 + signal.SIGQUIT


def test_preparation_happens_before_each_start(lab: Lab, tmp_path: Path) -> None:
    prepared: list[str] = []
    component = Component(
        name="one",
        command=(sys.executable, "-c", "pass"),
        environment={},
        directory=tmp_path,
        prepare=lambda: prepared.append("yes"),
        is_ready=lambda: True,
        ready_seconds=20.0,
        stop=(),
    )
    process = Process(component, tmp_path)
    for _ in range(2):
        process.start()
        assert process.wait(20)

    assert prepared == ["yes", "yes"]


def test_large_log_is_put_aside_at_the_next_start(lab: Lab) -> None:
    log = lab.directory / "one.log"
    with log.open("wb") as file:
        file.truncate(LOG_BYTES_KEPT + 1)
    process = Process(lab.component("one", "echo new;"), lab.directory)

    process.start()

    assert process.wait(20)
    assert lab.log("one") == "new\n"
    assert log.with_suffix(".log.1").stat().st_size == LOG_BYTES_KEPT + 1


def test_secrets_are_not_in_the_representation(lab: Lab) -> None:
    component = lab.component("one")

    assert "PATH" in component.environment
    assert "PATH" not in repr(component)
