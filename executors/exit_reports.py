"""Jobs without Prefect inside: their exit code says how their run ended.

The job variable ``report: exit-code`` chooses that. What such a job prints goes line by line to
the run's page, and its last lines into the message of a failure.
"""

from __future__ import annotations

import contextlib
import contextvars
import logging
import threading
from collections import deque
from collections.abc import Iterator
from typing import IO, Any

from executors import errors

REPORT_VARIABLE = "report"
EXIT_CODE, ENGINE = "exit-code", "engine"

LAST_LINES = 10
MAX_LINE = 2000  # characters
# What is left to read when a job has ended comes at once.
OUTPUT_SECONDS = 5.0
READ_BYTES = 65536

# What these mean for Prefect's engine they mean for nobody else.
_ENGINES_OWN = frozenset({1, 2})

logger = logging.getLogger(__name__)


def parse(value: Any) -> bool:
    """Whether a run's end is told by the exit code. Raises ConfigurationError."""
    if value not in (None, ENGINE, EXIT_CODE):
        raise errors.ConfigurationError(
            f"The job variable {REPORT_VARIABLE!r} is neither {ENGINE!r} nor {EXIT_CODE!r}."
        )
    return bool(value == EXIT_CODE)


def explanation(status_code: int, told: str | None) -> str | None:
    """What is said about an exit status, less what is true of Prefect's engine alone."""
    return None if status_code in _ENGINES_OWN else told


class Lines:
    """What a job prints: line by line to the log that this thread's run is bound to."""

    def __init__(self) -> None:
        self._last: deque[str] = deque(maxlen=LAST_LINES)
        self._begun = ""

    def write(self, text: str) -> None:
        """Take more of it, which may end in the middle of a line."""
        *lines, self._begun = (self._begun + text).split("\n")
        # Otherwise one without an end would be kept whole.
        if len(self._begun) > MAX_LINE:
            lines.append(self._begun)
            self._begun = ""
        for line in lines:
            self._log(line.rstrip("\r"))

    def flush(self) -> None:
        """Nothing waits here but the beginning of a line."""

    def close(self) -> None:
        """Take what has begun as a line."""
        if self._begun:
            self.write("\n")

    def last(self) -> str:
        """The last lines."""
        return "\n".join(self._last)

    def _log(self, line: str) -> None:
        for start in range(0, max(len(line), 1), MAX_LINE):
            part = line[start : start + MAX_LINE]
            self._last.append(part)
            logger.info("%s", part)


@contextlib.contextmanager
def following(output: IO[bytes] | None) -> Iterator[Lines]:
    """Read what a job prints for as long as the block lasts; nothing if it is not captured."""
    lines = Lines()
    if output is None:
        yield lines
        return
    thread = threading.Thread(
        target=contextvars.copy_context().run,
        args=(_read, output, lines),
        name="job-output",
        daemon=True,
    )
    thread.start()
    try:
        yield lines
        # A process that has left the job may keep its end open.
        thread.join(OUTPUT_SECONDS)
    finally:
        if not thread.is_alive():
            output.close()


def _read(output: IO[bytes], lines: Lines) -> None:
    with contextlib.suppress(OSError, ValueError):  # closed under our hands
        while data := output.read1(READ_BYTES):  # type: ignore[attr-defined] # of a pipe
            lines.write(data.decode(errors="replace"))
    lines.close()
