"""Processes whose clock is wrong."""

from __future__ import annotations

from pathlib import Path

FAKETIME = Path("/usr/lib/x86_64-linux-gnu/faketime/libfaketimeMT.so.1")


def wrong_clock(off: int) -> dict[str, str]:
    """The environment of processes whose clock is off by so many seconds; needs libfaketime."""
    return {
        "LD_PRELOAD": str(FAKETIME),
        "FAKETIME": f"{off:+d}",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
