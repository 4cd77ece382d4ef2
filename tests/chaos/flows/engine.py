"""Stands in for Prefect's engine, which needs three seconds of CPU where this needs none.

To its launcher and to the server it behaves as the engine does: it connects to the control socket
before its run is Running, can be asked to cancel or to leave its run alone, takes SIGTERM for a
crash otherwise, and reports its last state.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import sys
import time
import urllib.error
import urllib.request
from types import FrameType
from typing import Any
from uuid import uuid4

from tests.chaos.flows import marks

PATIENCE_SECONDS = 40.0  # as long as Prefect's client tries, about
PAUSE_SECONDS = 0.3
# Who does not look like Prefect's client loses the concurrency slot of its run.
HEADERS = {"Content-Type": "application/json", "User-Agent": "prefect/3.8.8 (API 0.8.4)"}

HELLO = b"\x00PF\x02\x01"
RECEIPT = b"\x01"


class Terminated(BaseException):
    """SIGTERM."""


def on_terminate(_signum: int, _frame: FrameType | None) -> None:
    raise Terminated


def propose(state_type: str, *, force: bool = False) -> dict[str, Any]:
    """Propose a state and return the server's answer; the request is repeated until it is there."""
    api_url, run_id = os.environ["PREFECT_API_URL"], os.environ["PREFECT__FLOW_RUN_ID"]
    details = {"transition_id": str(uuid4())}
    body = {"state": {"type": state_type, "state_details": details}, "force": force}
    request = urllib.request.Request(
        f"{api_url}/flow_runs/{run_id}/set_state", json.dumps(body).encode(), HEADERS
    )
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return dict(json.load(answer))
        except urllib.error.HTTPError as error:
            if error.code != 503 or time.monotonic() > deadline:
                raise
        except OSError:
            if time.monotonic() > deadline:
                raise
        time.sleep(PAUSE_SECONDS)


class Launcher:
    """The connection to whoever has started this."""

    def __init__(self) -> None:
        port, token = os.environ["PREFECT__CONTROL_PORT"], os.environ["PREFECT__CONTROL_TOKEN"]
        self._connection = socket.create_connection(("127.0.0.1", int(port)))
        self._connection.sendall(token.encode() + b"\n" + HELLO)
        self._connection.recv(len(HELLO))
        self.intent = b""

    def listen(self, seconds: float) -> None:
        """Wait for a request, agree to it and remember it."""
        self._connection.settimeout(seconds)
        try:
            if intent := self._connection.recv(1):
                self.intent = intent
                self._connection.sendall(b"a")
                return
        except TimeoutError:
            return
        except OSError:
            pass
        time.sleep(seconds)  # nobody is there any more

    def report(self, state_type: str) -> None:
        """Say in which state the run was left."""
        receipt = json.dumps({"disposition": "reported", "state_type": state_type}).encode()
        try:
            self._connection.settimeout(5)
            self._connection.sendall(RECEIPT + len(receipt).to_bytes(4, "big") + receipt)
            self._connection.recv(1)
        except OSError:
            pass


def wait_at(gate: str) -> None:
    """Be slow to begin."""
    if gate:
        marks.mark("late")
        while not marks.is_open(gate):
            time.sleep(PAUSE_SECONDS)


def pass_time(seconds: float, launcher: Launcher | None) -> None:
    """Sleep, and answer the launcher meanwhile."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0:
        if launcher is None:
            time.sleep(left)
        else:
            launcher.listen(left)


def begin(launcher: Launcher | None) -> None:
    """Propose Running, as the engine does: what the server does not accept is not executed."""
    while (answer := propose("RUNNING"))["status"] == "WAIT":
        marks.mark("waits")
        pass_time(answer["details"]["delay_seconds"], launcher)
    if answer["status"] != "ACCEPT" and answer["state"]["type"] != "RUNNING":
        sys.exit(0)


def work(seconds: float, gate: str, launcher: Launcher | None) -> None:
    """Be the flow, for so long or until its gate is open."""
    deadline = time.monotonic() + seconds
    while (left := deadline - time.monotonic()) > 0 and not marks.is_open(gate):
        marks.mark("beat")
        pass_time(min(marks.BEAT_SECONDS, left), launcher)


def finish(state_type: str, launcher: Launcher | None) -> None:
    """Tell the server and the launcher the end."""
    answer = propose(state_type)
    marks.mark("reported", answer["state"]["type"], answer["status"])
    if launcher is not None:
        launcher.report(answer["state"]["type"])


def leave(launcher: Launcher | None) -> None:
    """What becomes of the run after SIGTERM."""
    intent = launcher.intent if launcher else b""
    if intent == b"c":
        propose("CANCELLED", force=True)
        sys.exit(0)
    if intent:
        sys.exit(0)
    propose("CRASHED", force=True)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    os.kill(os.getpid(), signal.SIGTERM)


def execute(how: argparse.Namespace) -> None:
    """Go through the states of a run."""
    if how.end == "unstartable":
        sys.exit(1)
    signal.signal(signal.SIGTERM, signal.SIG_IGN if how.stubborn else on_terminate)
    launcher: Launcher | None = None
    try:
        wait_at(how.late)
        # In this order, as the engine: it may have to wait for its start time in between.
        launcher = None if how.stubborn else Launcher()
        begin(launcher)
        marks.begin()
        if how.escapee:
            marks.leave_escapee()
        work(how.seconds, how.gate, launcher)
        if how.end == "exit":
            os._exit(3)
        if how.end == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        marks.mark("end")
        finish(how.end.upper(), launcher)
    except Terminated:
        leave(launcher)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--as", dest="name", help="prefect.engine, to be known as an engine by that"
    )
    parser.add_argument("--seconds", type=float, default=0.5)
    ends = ["completed", "failed", "exit", "kill", "unstartable"]
    parser.add_argument("--end", choices=ends, default="completed")
    parser.add_argument("--gate", default="", help="ends when it is opened")
    parser.add_argument("--late", default="", metavar="GATE", help="begins when it is opened")
    parser.add_argument("--escapee", action="store_true")
    parser.add_argument("--stubborn", action="store_true")
    execute(parser.parse_args())


if __name__ == "__main__":
    main()
