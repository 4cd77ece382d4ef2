"""SIGTERM to a pool child: held back while its task executes, and delivered after that."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable

import pytest

from dispatcher import planning
from dispatcher.execution import stop_requests
from tests import forking


def terminate() -> None:
    os.kill(os.getpid(), signal.SIGTERM)


def ignore_wakes() -> None:
    """A wake-up that nobody waits for."""


def status_of_child(in_the_child: Callable[[], None]) -> int:
    """The exit code of a forked child, negative for a signal."""
    pid = os.fork()
    if pid == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            in_the_child()
        finally:
            os._exit(99)
    _, status = os.waitpid(pid, 0)
    return os.waitstatus_to_exitcode(status)


def test_a_task_hears_of_the_request_and_goes_on() -> None:
    def execute() -> None:
        woken: list[str] = []
        requests = stop_requests.StopRequests(lambda: woken.append("woken"))
        before: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, _frame: before.append(number))
        assert not requests.requested
        with requests.held_back():
            terminate()
            assert requests.requested
            assert woken == ["woken"]
            terminate()
            assert before == []
        # What the signal always does comes afterwards, once.
        assert before == [signal.SIGTERM]
        terminate()
        assert before == [signal.SIGTERM] * 2

    assert forking.succeeds(execute)


def test_a_time_limit_is_a_reason_to_stop_for_that_task_alone() -> None:
    def execute() -> None:
        woken: list[str] = []
        requests = stop_requests.StopRequests(lambda: woken.append("woken"))
        raised: list[int] = []
        signal.signal(signal.SIGUSR1, lambda number, _frame: raised.append(number))
        with requests.held_back():
            assert requests.reason is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert requests.reason is planning.StopReason.TIME_LIMIT
            assert woken == ["woken"]
        with requests.held_back():
            assert requests.reason is None
        assert raised == []
        os.kill(os.getpid(), signal.SIGUSR1)
        assert raised == [signal.SIGUSR1]

    assert forking.succeeds(execute)


def test_the_child_ends_by_the_signal_once_its_task_is_through() -> None:
    through_read, through_write = os.pipe()

    def execute() -> None:
        requests = stop_requests.StopRequests(ignore_wakes)
        with requests.held_back():
            terminate()
            os.write(through_write, b"through")
        os.write(through_write, b"too far")

    assert status_of_child(execute) == -signal.SIGTERM
    os.close(through_write)
    assert os.read(through_read, 100) == b"through"
    os.close(through_read)


def test_a_task_that_fails_lets_the_signal_through_too() -> None:
    def execute() -> None:
        requests = stop_requests.StopRequests(ignore_wakes)
        with requests.held_back():
            terminate()
            raise LookupError

    assert status_of_child(execute) == -signal.SIGTERM


def test_without_a_request_nothing_is_delivered_and_the_signal_is_as_before() -> None:
    def execute() -> None:
        requests = stop_requests.StopRequests(ignore_wakes)
        before = signal.getsignal(signal.SIGTERM)
        for _ in range(2):
            with requests.held_back():
                assert signal.getsignal(signal.SIGTERM) is not before
            assert signal.getsignal(signal.SIGTERM) is before
        with pytest.raises(LookupError), requests.held_back():
            raise LookupError
        assert signal.getsignal(signal.SIGTERM) is before

    assert forking.succeeds(execute)


def test_in_other_threads_the_signal_is_left_alone() -> None:
    requests = stop_requests.StopRequests(ignore_wakes)
    before = signal.getsignal(signal.SIGTERM)
    seen: list[object] = []

    def execute() -> None:
        with requests.held_back():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=execute)
    thread.start()
    thread.join()
    assert seen == [before]
    assert not requests.requested


# The time-out of a worker's stop


def test_a_worker_whose_stop_takes_too_long_gets_the_harder_signal() -> None:
    def stop() -> None:
        got = threading.Event()
        signal.signal(signal.SIGQUIT, lambda _number, _frame: got.set())
        stop_requests.StopTimeout(0.05).begin()
        assert got.wait(10)

    assert forking.succeeds(stop)


def test_without_a_time_out_nothing_is_waiting_to_happen() -> None:
    before = threading.active_count()
    stop_requests.StopTimeout(None).begin()
    assert threading.active_count() == before
