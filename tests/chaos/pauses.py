"""The times in which a fault was at work that keeps recovery from going on."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass
class Pause:
    """One fault, from now on; times are seconds since the epoch.

    For ``aftermath`` seconds after its end it may still be felt.
    """

    what: str
    aftermath: float
    clock: Callable[[], float] = time.time
    began: float = field(init=False)
    ended: float = field(init=False, default=math.inf)

    def __post_init__(self) -> None:
        self.began = self.clock()

    def end(self) -> None:
        """Note that the fault has been undone."""
        self.ended = self.clock()

    @property
    def is_over(self) -> bool:
        """Whether the fault has been undone."""
        return self.ended < math.inf


def calm_seconds(began: float, ended: float, felt: Iterable[Pause]) -> float:
    """How much of a time no pause was felt in."""
    calm, since = 0.0, began
    for pause in sorted(felt, key=lambda each: each.began):
        calm += max(min(pause.began, ended) - since, 0.0)
        since = max(since, pause.ended + pause.aftermath)
    return calm + max(ended - since, 0.0)
