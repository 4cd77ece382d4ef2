"""Doing the same for many things, a few at a time."""

from __future__ import annotations

import contextvars
import threading
from collections.abc import Callable, Sequence
from concurrent import futures
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def for_each(
    items: Sequence[T],
    work: Callable[[T], R],
    *,
    threads: int,
    only_its_own: type[Exception] | tuple[type[Exception], ...],
) -> list[R]:
    """Do the work for every item, begun in their order; return what it returned.

    An error of a type in ``only_its_own`` concerns one item, and the others are done all the
    same. After any other error nothing more is begun.

    Raises:
        Exception: the first error there was, once everything that was begun has ended.
    """
    if not items:
        return []
    if len(items) == 1:
        return [work(items[0])]
    stopping = threading.Event()

    def guarded(item: T) -> R | None:
        if stopping.is_set():
            return None
        try:
            return work(item)
        except only_its_own:
            raise
        except BaseException:
            stopping.set()
            raise

    # The threads end with the block: none of them may be there when the process forks.
    with futures.ThreadPoolExecutor(min(threads, len(items)), "parallel") as pool:
        # Each in a copy of the context, so that its log lines belong where the caller's do.
        begun = [pool.submit(contextvars.copy_context().run, guarded, item) for item in items]
    failed = [error for each in begun if (error := each.exception())]
    if failed:
        raise failed[0]
    results = [each.result() for each in begun]
    return [result for result in results if result is not None]
