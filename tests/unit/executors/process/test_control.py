from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from concurrent import futures

import psutil
import pytest

from dispatcher.prefect_api import schemas
from executors.process.engine_control import control, protocol
from tests import waiting

SECONDS = 10.0

HELLO = b"\x00PF\x02\x01"
PAYLOAD = b'{"disposition":"STATE_REPORTED","state_type":"COMPLETED"}'
RECEIPT = b"\x01" + len(PAYLOAD).to_bytes(4, "big") + PAYLOAD


@pytest.fixture
def listener() -> Iterator[control.ControlSocket]:
    with control.ControlSocket() as opened:
        yield opened


def call(listener: control.ControlSocket, greeting: bytes | None = None) -> socket.socket:
    environment = listener.environment
    connection = socket.create_connection(
        ("127.0.0.1", int(environment[protocol.PORT_VARIABLE])), timeout=SECONDS
    )
    token = environment[protocol.TOKEN_VARIABLE].encode() + b"\n"
    connection.sendall(token if greeting is None else greeting)
    return connection


@pytest.fixture
def engine(listener: control.ControlSocket) -> Iterator[socket.socket]:
    with call(listener) as connection:
        await_authentication(listener)
        yield connection


def await_authentication(listener: control.ControlSocket) -> None:
    waiting.wait_for(lambda: listener.connected, seconds=SECONDS, what="authentication")


def agree(engine: socket.socket, answer: bytes = b"a") -> bytes:
    asked = engine.recv(1)
    engine.sendall(answer)
    engine.close()
    return asked


def test_an_engine_with_the_token_is_connected(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    assert listener.connected
    assert listener.engine_seen
    assert listener.engine_port == engine.getsockname()[1]


def test_an_engine_that_hangs_up_is_no_longer_connected(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    engine.close()

    waiting.wait_for(lambda: not listener.connected, seconds=SECONDS, what="the end is noticed")
    assert listener.engine_seen
    assert listener.engine_port is None


def test_a_token_in_pieces_is_accepted(listener: control.ControlSocket) -> None:
    token = listener.environment[protocol.TOKEN_VARIABLE].encode()
    with call(listener, token[:5]) as connection:
        connection.sendall(token[5:] + b"\n")
        await_authentication(listener)


@pytest.mark.parametrize("greeting", [b"0" * 32 + b"\n", b"\n" * 100, b"GET / HTTP/1.1\r\n" * 9])
def test_a_stranger_is_dropped_and_the_engine_still_gets_in(
    listener: control.ControlSocket, greeting: bytes
) -> None:
    with call(listener, greeting) as stranger, contextlib.suppress(ConnectionResetError):
        assert stranger.recv(1) == b""
    assert not listener.engine_seen

    with call(listener):
        await_authentication(listener)


def test_silent_strangers_do_not_keep_the_engine_out(listener: control.ControlSocket) -> None:
    strangers = [call(listener, b"") for _ in range(2 * control.MAX_STRANGERS)]
    with call(listener):
        await_authentication(listener)
    for stranger in strangers:
        stranger.close()


def test_silent_strangers_are_dropped_in_time(listener: control.ControlSocket) -> None:
    started = time.monotonic()
    with call(listener, b"") as stranger:
        stranger.settimeout(3 * control.AUTHENTICATION_SECONDS)
        assert stranger.recv(1) == b""
    assert time.monotonic() - started >= control.AUTHENTICATION_SECONDS


def receive(connection: socket.socket, count: int) -> bytes:
    """So many bytes; a socket with a time limit may give them one by one."""
    received = b""
    while len(received) < count and (more := connection.recv(count - len(received))):
        received += more
    return received


def test_a_second_engine_does_not_replace_the_first(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    with call(listener) as second:
        assert second.recv(1) == b""
    assert listener.engine_port == engine.getsockname()[1]


def test_the_reported_state_is_kept_and_acknowledged(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    engine.sendall(HELLO + RECEIPT)

    assert receive(engine, 6) == HELLO + protocol.RECEIPT_ACK
    assert listener.reported_state is schemas.StateType.COMPLETED
    assert listener.concluded


def test_what_the_engine_sent_last_is_read_before_closing() -> None:
    for _ in range(20):
        with control.ControlSocket() as listener, call(listener) as engine:
            await_authentication(listener)
            engine.sendall(RECEIPT)
        assert listener.reported_state is schemas.StateType.COMPLETED


@pytest.mark.parametrize(
    ("intent", "byte"), [("cancel", b"c"), ("reschedule", b"r"), ("relinquish", b"q")]
)
def test_a_request_is_granted_once_the_engine_agrees(
    listener: control.ControlSocket,
    engine: socket.socket,
    intent: protocol.Intent,
    byte: bytes,
) -> None:
    with futures.ThreadPoolExecutor() as pool:
        asked = pool.submit(agree, engine)
        assert listener.request(intent, SECONDS)
    assert asked.result() == byte


def test_an_agreement_holds_for_its_own_intent_only(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    with futures.ThreadPoolExecutor() as pool:
        pool.submit(agree, engine)
        assert listener.request("cancel", SECONDS)

    assert listener.request("cancel")
    assert not listener.request("reschedule")


def test_without_an_engine_nothing_is_granted_and_nothing_waited_for(
    listener: control.ControlSocket,
) -> None:
    assert not listener.request("cancel", 1000)


def test_an_engine_that_does_not_answer_does_not_agree(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    assert not listener.request("cancel", 0.1)


def test_an_engine_that_hangs_up_does_not_agree(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    with futures.ThreadPoolExecutor() as pool:
        pool.submit(agree, engine, b"")
        assert not listener.request("cancel", 1000)


def test_a_report_that_crosses_a_request_wins(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    with futures.ThreadPoolExecutor() as pool:
        pool.submit(agree, engine, RECEIPT)
        assert not listener.request("cancel", 1000)
    assert listener.concluded


def test_an_engine_that_has_reported_is_asked_nothing(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    engine.sendall(RECEIPT)
    assert engine.recv(1) == protocol.RECEIPT_ACK

    assert not listener.request("cancel", 1000)


def test_an_engine_that_talks_nonsense_is_dropped(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    engine.sendall(b"nonsense")

    waiting.wait_for(lambda: not listener.connected, seconds=SECONDS, what="it is dropped")


def test_an_agreement_that_nobody_asked_for_counts_for_nothing(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    engine.sendall(b"a" + HELLO)
    assert receive(engine, 5) == HELLO

    assert not listener.request("cancel", 0.1)


def test_a_request_in_waiting_ends_with_the_socket(
    listener: control.ControlSocket, engine: socket.socket
) -> None:
    with futures.ThreadPoolExecutor() as pool:
        asking = pool.submit(listener.request, "cancel", 1000)
        assert engine.recv(1) == b"c"
        listener.close()
        assert not asking.result(SECONDS)


def test_closing_leaves_no_thread_and_no_descriptor() -> None:
    with control.ControlSocket():
        pass
    process = psutil.Process()
    before = process.num_fds(), threading.active_count()

    for _ in range(20):
        with control.ControlSocket() as listener:
            call(listener, b"stranger").close()
            call(listener).close()

    assert (process.num_fds(), threading.active_count()) == before


def test_the_token_is_in_no_representation(listener: control.ControlSocket) -> None:
    assert listener.environment[protocol.TOKEN_VARIABLE] not in repr(listener)
