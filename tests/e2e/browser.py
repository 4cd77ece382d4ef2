"""A real browser, headless Chromium, driven through its own debugging protocol."""

from __future__ import annotations

import base64
import contextlib
import json
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from websockets.sync import client as websockets
from websockets.sync import connection

from tests import waiting

NAMES = ("chromium", "chromium-browser", "google-chrome")
SIZE = (1400, 700)
PAGE_SECONDS = 60.0


def binary() -> str | None:
    """The browser of this machine, if there is one."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """One tab."""

    def __init__(self, link: connection.Connection) -> None:
        self._connection = link
        self._last = 0

    def open(self, url: str) -> None:
        self._call("Page.navigate", url=url)

    def text(self) -> str:
        """What a person can read on the page."""
        return str(self.evaluate("document.body ? document.body.innerText : ''"))

    def evaluate(self, expression: str) -> Any:
        answer = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        return answer["result"].get("value")

    def wait_for(self, words: str) -> None:
        waiting.wait_for(
            lambda: words in self.text(), seconds=PAGE_SECONDS, every=0.5, what=f"to read {words!r}"
        )

    def type(self, selector: str, text: str) -> None:
        """Write into a field."""
        self.evaluate(f"document.querySelector({selector!r}).focus()")
        self._call("Input.insertText", text=text)

    def picture(self, file: Path) -> None:
        """Write what is seen to a PNG file."""
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot")["data"]))

    def _call(self, method: str, **parameters: Any) -> Any:
        self._last += 1
        self._connection.send(
            json.dumps({"id": self._last, "method": method, "params": parameters})
        )
        while True:
            answer = json.loads(self._connection.recv(timeout=PAGE_SECONDS))
            if answer.get("id") == self._last:
                assert "error" not in answer, answer["error"]
                return answer["result"]


@contextlib.contextmanager
def chromium(directory: Path) -> Iterator[Page]:
    """Start a browser with a profile of its own; afterwards it is gone."""
    found = binary()
    assert found is not None
    size = ",".join(map(str, SIZE))
    options = (
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"),
        *("--remote-debugging-port=0", f"--window-size={size}", f"--user-data-dir={directory}"),
    )
    log = (directory / "log").open("wb")
    with log, subprocess.Popen([found, *options], stdout=log, stderr=log) as process:
        try:
            port = _port(directory / "DevToolsActivePort")
            with websockets.connect(_address(port), max_size=None) as link:
                yield Page(link)
        finally:
            process.terminate()


def _port(file: Path) -> int:
    def written() -> str:
        return file.read_text() if file.exists() else ""

    text = waiting.wait_for(written, seconds=PAGE_SECONDS, what="the browser listens")
    return int(text.splitlines()[0])


def _address(port: int) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=10) as answer:
        targets = json.load(answer)
    return str(
        next(target for target in targets if target["type"] == "page")["webSocketDebuggerUrl"]
    )
