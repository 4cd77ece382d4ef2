"""The ways to start a job."""

from __future__ import annotations

from typing import Any, Literal, get_args

Mode = Literal["auto", "warm", "cold"]
MODES: tuple[Mode, ...] = get_args(Mode)


def parse(value: Any) -> Mode | None:
    """The mode that a value names, ``None`` if it is none."""
    return next((mode for mode in MODES if mode == value), None)
