"""What a fork server prepares for its runs, with the real engine, in a process of its own."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from executors.process.fork_server.engine import prompt_heartbeats

REHEARSED = """
import re, ssl, sys, threading, time
from executors.process.fork_server import preloading
preloading.preload("prefect.engine", ())
"""


def after_rehearsal(tmp_path: Path, program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", REHEARSED + program],
        capture_output=True,
        text=True,
        check=False,
        env={"PREFECT_HOME": str(tmp_path), "PREFECT_API_URL": "http://127.0.0.1:1/api"},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_no_model_of_prefects_is_left_to_be_completed(tmp_path: Path) -> None:
    program = """
from pydantic import BaseModel
def below(model):
    for each in model.__subclasses__():
        yield each
        yield from below(each)
models = [each for each in below(BaseModel) if each.__module__.startswith("prefect.")]
print(len(models) > 100, [each for each in models if not each.__pydantic_complete__])
"""
    assert after_rehearsal(tmp_path, program) == "True []\n"


def test_prefects_clients_read_no_authorities_any_more(tmp_path: Path) -> None:
    program = """
from prefect.client.orchestration import get_client
read = []
original = ssl.create_default_context
ssl.create_default_context = lambda **options: read.append(options) or original(**options)
get_client(sync_client=True); get_client(); get_client()
print(read)
ssl.create_default_context()
print(len(read))
"""
    assert after_rehearsal(tmp_path, program) == "[]\n1\n"


def test_a_line_of_log_compiles_no_pattern_any_more(tmp_path: Path) -> None:
    program = """
from prefect.logging.highlighters import PrefectConsoleHighlighter
import rich.text
compiled = []
original = re._compiler.compile
re._compiler.compile = lambda *args: compiled.append(args) or original(*args)
PrefectConsoleHighlighter().highlight(rich.text.Text("INFO | Flow run 'a' is Completed"))
print(compiled)
re.compile("never seen")
print(len(compiled))
"""
    assert after_rehearsal(tmp_path, program) == "[]\n1\n"


def test_a_run_does_not_wait_for_the_thread_that_sends_its_heartbeats(tmp_path: Path) -> None:
    program = """
from types import SimpleNamespace
from unittest import mock
from prefect import flow_engine

def forbidden(seconds):
    raise AssertionError("it sleeps")
flow_engine.time._sleep = forbidden
sent = threading.Event()
engine = mock.MagicMock(heartbeat_seconds=30, flow_run=None)
engine._build_heartbeat_event_template.return_value = ({}, [])
engine._emit_flow_run_heartbeat.side_effect = lambda *_: sent.set()
with flow_engine._send_heartbeats(engine):
    assert sent.wait(20)
    [heart] = [each for each in threading.enumerate() if each.daemon]
print(heart.is_alive(), flow_engine.time.monotonic is time.monotonic)
"""
    assert after_rehearsal(tmp_path, program) == "False True\n"


def test_a_sleep_that_nobody_can_end_is_an_ordinary_one() -> None:
    slept: list[float] = []
    prompt = prompt_heartbeats.PromptTime(slept.append)
    prompt.sleep(7)
    assert slept == [7]
    stop_event = "no event"
    prompt.sleep(8)
    assert slept == [7, 8], stop_event


def test_a_sleep_of_a_loop_that_is_told_to_stop_ends_at_once() -> None:
    def loop(stop_event: threading.Event) -> None:
        assert not stop_event.is_set()
        sleeping.set()
        prompt.sleep(100)

    def never(seconds: float) -> None:
        pytest.fail(f"sleeps for {seconds} s")

    prompt = prompt_heartbeats.PromptTime(never)
    sleeping, stop = threading.Event(), threading.Event()
    thread = threading.Thread(target=loop, args=(stop,), daemon=True)
    thread.start()
    assert sleeping.wait(20)
    stop.set()
    thread.join(20)
    assert not thread.is_alive()
