"""A process of a job that has left its parents and its session and ignores SIGTERM."""

from __future__ import annotations

import os
import signal
import time

from tests.chaos.flows import marks

LIFE_SECONDS = 300.0


def main() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if os.fork():
        os._exit(0)
    os.setsid()
    if os.fork():
        os._exit(0)
    marks.mark("escaped")
    time.sleep(LIFE_SECONDS)


if __name__ == "__main__":
    main()
