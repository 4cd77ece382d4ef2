from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence

import pytest
from pydantic import BaseModel

from dispatcher import errors
from dispatcher.reporting import outbox
from tests import waiting

# Longer than any test: what goes out in spite of it was due for another reason.
NEVER = 1000.0


class Item(BaseModel):
    text: str


class Receiver:
    """The other end: takes batches, and can be closed, broken or away."""

    def __init__(self) -> None:
        self.batches: list[list[str]] = []
        self.attempts = 0
        self.failures: list[Exception] = []
        self.open = threading.Event()
        self.open.set()

    def send(self, items: Sequence[Item]) -> None:
        self.attempts += 1
        self.open.wait(30)
        if self.failures:
            raise self.failures.pop(0)
        self.batches.append([item.text for item in items])

    @property
    def texts(self) -> list[str]:
        return [text for batch in self.batches for text in batch]


class Outboxes:
    """Makes outboxes and ends their threads."""

    def __init__(self, receiver: Receiver) -> None:
        self._receiver = receiver
        self._made: list[outbox.Outbox[Item]] = []

    def new(
        self,
        *,
        interval_seconds: float = NEVER,
        pauses_seconds: Sequence[float] = (0.01, 0.01),
        limits: outbox.Limits | None = None,
    ) -> outbox.Outbox[Item]:
        made = outbox.Outbox(
            self._receiver.send,
            name="test items",
            limits=limits,
            interval_seconds=interval_seconds,
            pauses_seconds=pauses_seconds,
        )
        self._made.append(made)
        return made

    def close(self) -> None:
        for made in self._made:
            made.close(5)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    made = Receiver()
    yield made
    made.open.set()


@pytest.fixture
def outboxes(receiver: Receiver) -> Iterator[Outboxes]:
    made = Outboxes(receiver)
    yield made
    receiver.open.set()
    made.close()


def put(box: outbox.Outbox[Item], *texts: str) -> None:
    for text in texts:
        box.put(Item(text=text))


def threads() -> list[threading.Thread]:
    return [each for each in threading.enumerate() if each.name == "outbox test items"]


def wait_for_texts(receiver: Receiver, *texts: str) -> None:
    waiting.wait_for(
        lambda: receiver.texts == list(texts), seconds=10, what=f"{texts} have arrived"
    )


def test_nothing_runs_before_the_first_item(outboxes: Outboxes) -> None:
    box = outboxes.new()
    assert not threads()
    assert box.flush(0)
    assert box.close(0)


def test_a_full_batch_goes_out_at_once_and_in_order(receiver: Receiver, outboxes: Outboxes) -> None:
    put(outboxes.new(limits=outbox.Limits(batch_items=3)), "a", "b", "c", "d")
    wait_for_texts(receiver, "a", "b", "c")
    assert receiver.batches == [["a", "b", "c"]]


def test_a_batch_that_is_not_full_goes_out_after_the_interval(
    receiver: Receiver, outboxes: Outboxes
) -> None:
    put(outboxes.new(interval_seconds=0.1), "a", "b")
    wait_for_texts(receiver, "a", "b")
    assert receiver.batches == [["a", "b"]]


def test_a_batch_is_limited_by_its_size_too(receiver: Receiver, outboxes: Outboxes) -> None:
    size = len(Item(text="x" * 100).model_dump_json())
    box = outboxes.new(limits=outbox.Limits(batch_bytes=2 * size))
    texts = [letter * 100 for letter in "abcde"]
    put(box, *texts)
    assert box.flush(10)
    assert receiver.batches == [texts[0:2], texts[2:4], texts[4:5]]


def test_size_is_counted_in_bytes_as_they_are_sent(receiver: Receiver, outboxes: Outboxes) -> None:
    text = "ü" * 100
    box = outboxes.new(limits=outbox.Limits(batch_bytes=300))
    put(box, text, text)
    assert box.flush(10)
    assert receiver.batches == [[text], [text]]


def test_an_item_larger_than_a_batch_goes_alone(receiver: Receiver, outboxes: Outboxes) -> None:
    box = outboxes.new(limits=outbox.Limits(batch_bytes=100))
    put(box, "a", "b" * 500, "c")
    assert box.flush(10)
    assert receiver.batches == [["a"], ["b" * 500], ["c"]]


@pytest.mark.parametrize("limits", [outbox.Limits(max_items=10), outbox.Limits(max_bytes=150)])
def test_what_does_not_fit_is_dropped_and_counted_once(
    receiver: Receiver,
    outboxes: Outboxes,
    caplog: pytest.LogCaptureFixture,
    limits: outbox.Limits,
) -> None:
    box = outboxes.new(interval_seconds=0, limits=limits)
    receiver.open.clear()
    put(box, "first")
    waiting.wait_for(lambda: receiver.attempts, seconds=10, what="the first batch is under way")
    put(box, *(f"{number:03}" for number in range(100)))
    receiver.open.set()
    assert box.flush(10)
    assert receiver.texts == ["first", *(f"{number:03}" for number in range(10))]
    assert caplog.messages == ["90 test items were dropped: there were more than can be kept"]


def test_put_does_not_wait_for_a_server_that_hangs(receiver: Receiver, outboxes: Outboxes) -> None:
    box = outboxes.new(limits=outbox.Limits(batch_items=1))
    receiver.open.clear()
    put(box, "first")
    waiting.wait_for(lambda: receiver.attempts, seconds=10, what="the first batch is under way")
    began = time.monotonic()
    put(box, *map(str, range(1000)))
    assert time.monotonic() - began < 1


def test_an_unreachable_api_is_tried_again_and_nothing_is_lost(
    receiver: Receiver, outboxes: Outboxes, caplog: pytest.LogCaptureFixture
) -> None:
    box = outboxes.new(limits=outbox.Limits(batch_items=1))
    receiver.failures = [errors.ApiUnreachable(), errors.ApiUnreachable()]
    put(box, "a", "b")
    assert box.flush(10)
    assert receiver.texts == ["a", "b"]
    assert receiver.attempts == 4
    assert not caplog.messages


def test_attempts_are_bounded_and_what_is_given_up_is_counted(
    receiver: Receiver, outboxes: Outboxes, caplog: pytest.LogCaptureFixture
) -> None:
    box = outboxes.new(pauses_seconds=(0.01,))
    receiver.failures = [errors.ApiUnreachable("no answer"), errors.ApiUnreachable("no answer")]
    put(box, "a", "b")
    assert box.flush(10)
    put(box, "c")
    assert box.flush(10)
    assert receiver.texts == ["c"]
    assert caplog.messages == ["2 test items were dropped: no answer"]


@pytest.mark.parametrize(
    "error", [errors.RequestRefused("bad line", status_code=422), RuntimeError("bad line")]
)
def test_an_error_that_would_come_again_costs_one_attempt_and_one_batch(
    receiver: Receiver,
    outboxes: Outboxes,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    box = outboxes.new(limits=outbox.Limits(batch_items=2))
    receiver.failures = [error]
    put(box, "a", "b", "c")
    assert box.flush(10)
    assert receiver.texts == ["c"]
    assert receiver.attempts == 2
    assert caplog.messages == ["2 test items were dropped: bad line"]


def test_flush_says_when_it_was_not_done_in_time(receiver: Receiver, outboxes: Outboxes) -> None:
    box = outboxes.new()
    receiver.open.clear()
    put(box, "a")
    assert not box.flush(0.05)
    receiver.open.set()
    assert box.flush(10)
    assert receiver.texts == ["a"]


def test_flush_does_not_end_the_waiting_between_attempts(
    receiver: Receiver, outboxes: Outboxes
) -> None:
    box = outboxes.new(pauses_seconds=(NEVER,))
    receiver.failures = [errors.ApiUnreachable()]
    put(box, "a")
    assert not box.flush(0.2)
    assert receiver.attempts == 1


def test_close_sends_what_waits_and_ends_the_thread(receiver: Receiver, outboxes: Outboxes) -> None:
    box = outboxes.new()
    put(box, "a", "b")
    assert box.close(10)
    assert receiver.texts == ["a", "b"]
    assert not threads()


def test_close_gives_up_on_an_api_that_is_away(
    receiver: Receiver, outboxes: Outboxes, caplog: pytest.LogCaptureFixture
) -> None:
    box = outboxes.new(interval_seconds=0, pauses_seconds=(NEVER,))
    receiver.failures = [errors.ApiUnreachable("no answer")]
    put(box, "a")
    waiting.wait_for(lambda: receiver.attempts, seconds=10, what="the first attempt")
    assert box.close(10)
    assert receiver.attempts == 1
    assert caplog.messages == ["1 test items were dropped: no answer"]


def test_close_returns_in_time_and_says_what_is_left(
    receiver: Receiver, outboxes: Outboxes, caplog: pytest.LogCaptureFixture
) -> None:
    box = outboxes.new(limits=outbox.Limits(batch_items=2))
    receiver.open.clear()
    put(box, "a", "b", "c")
    assert not box.close(0.05)
    assert caplog.messages == ["3 test items were not sent before the process ended"]


def test_an_item_after_the_close_starts_anew(receiver: Receiver, outboxes: Outboxes) -> None:
    box = outboxes.new()
    put(box, "a")
    assert box.close(10)
    put(box, "b")
    assert len(threads()) == 1
    assert receiver.texts == ["a"]
    assert box.close(10)
    assert receiver.texts == ["a", "b"]


def test_threads_put_side_by_side_and_everything_arrives_once(
    receiver: Receiver, outboxes: Outboxes
) -> None:
    box = outboxes.new(limits=outbox.Limits(batch_items=7), interval_seconds=0.01)
    putting = [
        threading.Thread(target=put, args=(box, *(f"{thread}-{n}" for n in range(200))))
        for thread in range(5)
    ]
    for thread in putting:
        thread.start()
    for thread in putting:
        thread.join()
    assert box.flush(10)
    assert sorted(receiver.texts) == sorted(f"{t}-{n}" for t in range(5) for n in range(200))


_SCRIPT = """
import os, sys
from pydantic import BaseModel
from dispatcher.reporting import outbox

class Item(BaseModel):
    text: str

def send(items):
    role = "parent" if os.getpid() == parent else "child"
    os.write(1, f"{role} sends {[item.text for item in items]}\\n".encode())

parent = os.getpid()
box = outbox.Outbox(send, name="items", interval_seconds=1000)
"""

_FORK = """
box.put(Item(text="from the parent"))
if os.fork() == 0:
    assert box.flush(0)
    box.put(Item(text="from the child"))
    assert box.close(10)
    os._exit(0)
os.wait()
"""

_FORK_WHILE_PUTTING = """
import threading
box.put(Item(text="x"))
sender = next(iter(box._senders.values()))
with sender._changed:  # as another thread may hold it at the moment of the fork
    child = os.fork()
if child == 0:
    box.put(Item(text="from the child"))
    assert box.close(10)
    os._exit(0)
os.waitpid(child, 0)
os._exit(0)
"""


def output_of(script: str) -> list[str]:
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", _SCRIPT + script]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    assert not done.stderr
    return done.stdout.splitlines()


def test_an_ordinary_process_sends_what_waits_when_it_ends() -> None:
    assert output_of('box.put(Item(text="last words"))') == ["parent sends ['last words']"]


def test_a_forked_child_has_an_outbox_of_its_own() -> None:
    assert output_of(_FORK) == [
        "child sends ['from the child']",
        "parent sends ['from the parent']",
    ]


def test_a_lock_that_was_held_at_the_fork_does_not_hold_up_the_child() -> None:
    assert output_of(_FORK_WHILE_PUTTING) == ["child sends ['from the child']"]


def test_losses_are_reported_under_the_name_that_is_kept_off_the_runs_pages() -> None:
    assert outbox.logger is logging.getLogger("dispatcher.reporting.outbox")
