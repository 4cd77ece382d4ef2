"""Doing the same for many things at once: the results, and what an error stops."""

from __future__ import annotations

import contextvars
import threading

import pytest

from dispatcher.polling import parallel_calls

WORD = contextvars.ContextVar("WORD", default="")


def for_each(items: list[int], work: object, *, threads: int = 2) -> list[int]:
    assert callable(work)
    return parallel_calls.for_each(items, work, threads=threads, only_its_own=LookupError)


@pytest.mark.parametrize("items", [[], [3], [3, 1, 2], list(range(50))])
def test_results_come_in_the_order_of_the_items(items: list[int]) -> None:
    assert for_each(items, lambda item: item * 2) == [item * 2 for item in items]


def test_no_more_things_are_done_at_once_than_there_are_threads() -> None:
    lock, busy, most = threading.Lock(), [0], [0]
    both = threading.Barrier(2, timeout=20)

    def work(item: int) -> int:
        with lock:
            busy[0] += 1
            most[0] = max(most[0], busy[0])
        both.wait()
        with lock:
            busy[0] -= 1
        return item

    for_each(list(range(10)), work)
    assert most == [2]


def test_an_items_own_error_is_raised_once_the_others_are_done() -> None:
    done = []

    def work(item: int) -> int:
        if item == 1:
            raise LookupError(item)
        done.append(item)
        return item

    with pytest.raises(LookupError):
        for_each([0, 1, 2, 3], work)
    assert sorted(done) == [0, 2, 3]


def test_any_other_error_keeps_the_rest_from_being_begun() -> None:
    done = []

    def work(item: int) -> int:
        if item == 1:
            raise OSError
        done.append(item)
        return item

    with pytest.raises(OSError):
        for_each([0, 1, 2, 3], work, threads=1)
    assert done == [0]


def test_the_threads_are_gone_afterwards_and_knew_the_callers_context() -> None:
    WORD.set("known")
    before = threading.active_count()
    assert parallel_calls.for_each([1, 2], lambda _: WORD.get(), threads=2, only_its_own=()) == [
        "known",
        "known",
    ]
    assert threading.active_count() == before
