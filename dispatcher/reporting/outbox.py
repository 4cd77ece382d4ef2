"""Sends things in the background, in batches: who has something to say never waits for it.

For what a run can do without (its log lines, its events): an outbox rather drops than blocks its
callers or grows, and says how much it dropped.
"""

from __future__ import annotations

import atexit
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from pydantic import BaseModel

from dispatcher import errors

INTERVAL_SECONDS = 2.0  # as Prefect's own log worker
CLOSE_SECONDS = 3.0
# Before each new attempt at a batch, on top of what the API client itself repeats: together some
# minutes, so that a restart of the server loses nothing.
PAUSES_SECONDS = (1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 30.0, 30.0)

logger = logging.getLogger(__name__)

T = TypeVar("T", bound=BaseModel)


@dataclass(frozen=True)
class Limits:
    """How much an outbox keeps, and how much goes into one request; bytes are those of the JSON."""

    max_items: int = 5_000
    max_bytes: int = 16_000_000
    batch_items: int = 200
    batch_bytes: int = 2_000_000


class Outbox(Generic[T]):
    """Hands what is put into it to ``send``, from a thread that each process has of its own.

    The thread is started by the first item. After a fork the child begins with an empty outbox;
    what waited is the parent's to send. A batch goes out when it is full or ``interval_seconds``
    after its first item. If the API is unreachable, it is tried again after each of
    ``pauses_seconds``; any other error would come again, so the batch is dropped at once.
    """

    def __init__(
        self,
        send: Callable[[Sequence[T]], None],
        *,
        name: str,
        limits: Limits | None = None,
        interval_seconds: float = INTERVAL_SECONDS,
        pauses_seconds: Sequence[float] = PAUSES_SECONDS,
    ) -> None:
        """Make an outbox; ``name`` says in the plural what is in it, such as ``log lines``."""
        self._send = send
        self._name = name
        self._limits = limits or Limits()
        self._interval_seconds = interval_seconds
        self._pauses_seconds = tuple(pauses_seconds)
        self._senders: dict[int, _Sender[T]] = {}

    def put(self, item: T) -> None:
        """Have an item sent, or dropped if the outbox is full; neither waits nor raises."""
        self._own_sender().put(item)

    def flush(self, timeout_seconds: float) -> bool:
        """Send everything now; return whether nothing was left once the time was up."""
        sender = self._senders.get(os.getpid())
        return sender is None or sender.flush(timeout_seconds)

    def close(self, timeout_seconds: float = CLOSE_SECONDS) -> bool:
        """Send everything now, without a second attempt, and end the thread.

        Returns whether that was done in time. For the end of a process; an ordinary one does it
        by itself, but a child of Celery's pool leaves without the usual clean-up. An item that
        is put later starts anew.
        """
        sender = self._senders.get(os.getpid())
        return sender is None or sender.close(timeout_seconds)

    def _own_sender(self) -> _Sender[T]:
        # No lock: a fork may happen while another thread holds it.
        pid = os.getpid()
        sender = self._senders.get(pid)
        if sender is None:
            sender = self._senders.setdefault(pid, self._new_sender())
            for other in set(self._senders) - {pid}:
                self._senders.pop(other, None)
            atexit.register(self.close)
        return sender

    def _new_sender(self) -> _Sender[T]:
        return _Sender(
            self._send, self._name, self._limits, self._interval_seconds, self._pauses_seconds
        )


class _Sender(Generic[T]):
    """The outbox of one process: what waits, and the thread that sends it."""

    def __init__(
        self,
        send: Callable[[Sequence[T]], None],
        name: str,
        limits: Limits,
        interval_seconds: float,
        pauses_seconds: tuple[float, ...],
    ) -> None:
        self._send = send
        self._name = name
        self._limits = limits
        self._interval_seconds = interval_seconds
        self._pauses_seconds = pauses_seconds
        # Around everything below; its lock may be taken again by the thread that holds it.
        self._changed = threading.Condition()
        self._waiting: deque[tuple[T, int]] = deque()
        self._waiting_bytes = 0
        self._in_flight = 0
        self._overflow = 0
        self._flushing = 0
        self._closing = False
        self._thread: threading.Thread | None = None

    def put(self, item: T) -> None:
        size = len(item.model_dump_json().encode())
        with self._changed:
            if self._is_full(size):
                self._overflow += 1
                return
            self._waiting.append((item, size))
            self._waiting_bytes += size
            if self._thread is None:
                self._start()
            elif len(self._waiting) == 1 or self._is_due():
                self._changed.notify_all()

    def flush(self, timeout_seconds: float) -> bool:
        with self._changed:
            self._flushing += 1
            self._changed.notify_all()
            try:
                return self._changed.wait_for(self._is_empty, timeout_seconds)
            finally:
                self._flushing -= 1

    def close(self, timeout_seconds: float) -> bool:
        with self._changed:
            thread = self._thread
            self._closing = thread is not None
            self._changed.notify_all()
        if thread is not None:
            thread.join(timeout_seconds)
        with self._changed:
            left = len(self._waiting) + self._in_flight
        if left:
            logger.warning("%d %s were not sent before the process ended", left, self._name)
        return not left

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"outbox {self._name}", daemon=True)
        self._closing = False
        self._thread = thread
        try:
            thread.start()
        except RuntimeError:
            # No threads to be had, as at the end of the interpreter; the next item tries again.
            self._thread = None

    def _is_full(self, size: int) -> bool:
        return (
            len(self._waiting) >= self._limits.max_items
            or self._waiting_bytes + size > self._limits.max_bytes
        )

    def _is_empty(self) -> bool:
        return not self._waiting and not self._in_flight

    def _is_due(self) -> bool:
        return bool(
            self._closing
            or self._flushing
            or len(self._waiting) >= self._limits.batch_items
            or self._waiting_bytes >= self._limits.batch_bytes
        )

    def _run(self) -> None:
        while batch := self._next_batch():
            error = self._deliver(batch)
            with self._changed:
                overflow, self._overflow = self._overflow, 0
            self._report(len(batch) if error else 0, error)
            self._report(overflow, "there were more than can be kept")
            with self._changed:
                self._in_flight = 0
                self._changed.notify_all()

    def _next_batch(self) -> list[T]:
        """Wait for the next batch; an empty one means that the thread has to end."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            self._changed.wait_for(self._is_due, self._interval_seconds)
            batch = self._take()
            self._in_flight = len(batch)
            if not batch:
                self._thread = None
            return batch

    def _take(self) -> list[T]:
        batch: list[T] = []
        room = self._limits.batch_bytes
        while self._waiting and len(batch) < self._limits.batch_items:
            item, size = self._waiting[0]
            if batch and size > room:
                break
            self._waiting.popleft()
            self._waiting_bytes -= size
            room -= size
            batch.append(item)
        return batch

    def _deliver(self, batch: Sequence[T]) -> Exception | None:
        """Send a batch, if need be again; return why it could not be sent."""
        for pause_seconds in (*self._pauses_seconds, None):
            try:
                self._send(batch)
            except errors.ApiUnreachable as error:
                if pause_seconds is None or self._is_closing_within(pause_seconds):
                    return error
            except Exception as error:  # noqa: BLE001 - the batches after this one still count
                return error
            else:
                return None
        raise AssertionError("unreachable")

    def _is_closing_within(self, seconds: float) -> bool:
        with self._changed:
            return self._changed.wait_for(lambda: self._closing, seconds)

    def _report(self, dropped: int, reason: object) -> None:
        if dropped:
            logger.warning("%d %s were dropped: %s", dropped, self._name, reason)
