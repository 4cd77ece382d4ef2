"""The launcher's end of the engine's control connection, one per job.

A thread of its own answers the engine: it has to, also while the job's thread is busy or asleep.
"""

from __future__ import annotations

import contextlib
import hmac
import secrets
import selectors
import signal
import socket
import threading
import time

from dispatcher.prefect_api import schemas
from executors.process.engine_control import protocol

ACK_SECONDS = 1.0
AUTHENTICATION_SECONDS = 5.0

# Only the job's own engine has a reason to connect; this leaves room for port scanners.
MAX_STRANGERS = 16

_LOOPBACK = "127.0.0.1"
_TOKEN_BYTES = 16
_READ_BYTES = 4096


class _Peer:
    """One accepted connection and what it has sent so far."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline
        self.received = bytearray()


class ControlSocket:
    """Listens for one engine, takes its report and passes requests on to it.

    Thread-safe. To be closed once the engine has ended; a context manager does so.
    """

    def __init__(self) -> None:
        self.reported_state: schemas.StateType | None = None
        """The state type in which the engine says it left the run."""
        self.concluded = False
        """Whether the engine has said that it is done with the run."""
        self.engine_seen = False
        """Whether an engine has ever connected."""
        self._token = secrets.token_hex(_TOKEN_BYTES)
        self._requested: protocol.Intent | None = None
        self._acknowledged: protocol.Intent | None = None
        self._engine: _Peer | None = None
        self._strangers: list[_Peer] = []
        self._changed = threading.Condition()
        self._closing = False
        self._listener = socket.create_server((_LOOPBACK, 0))
        self._listener.setblocking(False)
        self._woken, self._waker = socket.socketpair()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._serve, name="control-socket", daemon=True)
        self._thread.start()

    def __enter__(self) -> ControlSocket:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def environment(self) -> dict[str, str]:
        """The variables by which the engine finds this socket; the token is a secret."""
        port = self._listener.getsockname()[1]
        return {protocol.PORT_VARIABLE: str(port), protocol.TOKEN_VARIABLE: self._token}

    @property
    def connected(self) -> bool:
        """Whether the engine is connected: from the flow's start until the run's last state."""
        return self._engine is not None

    @property
    def engine_port(self) -> int | None:
        """The engine's port of the connection, by which its process can be found."""
        with self._changed, contextlib.suppress(OSError):
            if self._engine is not None:
                return int(self._engine.connection.getpeername()[1])
        return None

    def request(self, intent: protocol.Intent, timeout_seconds: float = ACK_SECONDS) -> bool:
        """Ask the engine to treat the next SIGTERM as ``intent``; True once it has agreed.

        An engine that is not connected, has reported its last state, has been asked something
        else before or has no SIGTERM handler of Prefect's (any more) does not agree. One in a long
        call that holds the interpreter lock agrees when that is over.
        """
        with self._changed:
            if self._requested is None and self._engine is not None and not self.concluded:
                self._requested = intent
                self._send(self._engine, protocol.INTENT_BYTES[intent])
            if self._requested == intent:
                self._changed.wait_for(self._is_settled, timeout_seconds)
            return self._acknowledged == intent

    def close(self) -> None:
        """Take what the engine has sent until now, then let go of everything."""
        self._closing = True
        with contextlib.suppress(OSError):
            self._waker.send(b"\0")
        self._thread.join()

    def _is_settled(self) -> bool:
        return self._acknowledged is not None or self.concluded or self._engine is None

    def _serve(self) -> None:
        # Signals are for the main thread, whose waiting they must interrupt.
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
        try:
            while not self._closing:
                self._serve_once()
            if self._engine is not None:
                self._read(self._engine)
        finally:
            self._release()

    def _serve_once(self) -> None:
        timeout = AUTHENTICATION_SECONDS if self._strangers else None
        for key, _ in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif isinstance(key.data, _Peer):
                self._read(key.data)
        for stranger in list(self._strangers):
            if stranger.deadline < time.monotonic():
                self._drop(stranger)

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if len(self._strangers) >= MAX_STRANGERS:
            # The engine says its token at once; who has been silent for longest is not it.
            self._drop(self._strangers[0])
        connection.setblocking(False)
        stranger = _Peer(connection, time.monotonic() + AUTHENTICATION_SECONDS)
        self._strangers.append(stranger)
        self._selector.register(connection, selectors.EVENT_READ, stranger)

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        with self._changed:
            peer.received += data
            if peer is not self._engine:
                self._authenticate(peer)
            if peer is self._engine:
                self._converse(peer)
            if not data:
                self._drop(peer)
            self._changed.notify_all()

    def _authenticate(self, peer: _Peer) -> None:
        expected = self._token.encode() + b"\n"
        if len(peer.received) < len(expected):
            return
        given = bytes(peer.received[: len(expected)])
        if not hmac.compare_digest(given, expected) or self._engine is not None:
            self._drop(peer)
            return
        del peer.received[: len(expected)]
        self._strangers.remove(peer)
        self._engine = peer
        self.engine_seen = True

    def _converse(self, engine: _Peer) -> None:
        try:
            while message := protocol.take_message(engine.received):
                self._answer(engine, message)
        except protocol.ProtocolError:
            self._drop(engine)

    def _answer(self, engine: _Peer, message: protocol.Message) -> None:
        match message:
            case protocol.Hello(reply):
                self._send(engine, reply)
            case protocol.Receipt(state_type):
                self.reported_state = state_type
                self.concluded = True
                self._send(engine, protocol.RECEIPT_ACK)
            case protocol.IntentAcknowledged():
                self._acknowledged = self._requested

    def _send(self, peer: _Peer, data: bytes) -> None:
        # A peer that is gone is noticed, and dropped, by the next read.
        with contextlib.suppress(OSError):
            peer.connection.sendall(data)

    def _drop(self, peer: _Peer) -> None:
        if peer in self._strangers:
            self._strangers.remove(peer)
        elif peer is self._engine:
            self._engine = None
        else:
            return
        self._selector.unregister(peer.connection)
        peer.connection.close()

    def _release(self) -> None:
        with self._changed:
            for peer in [*self._strangers, *([self._engine] if self._engine else [])]:
                self._drop(peer)
            self._changed.notify_all()
        self._selector.close()
        for descriptor in (self._listener, self._woken, self._waker):
            descriptor.close()
