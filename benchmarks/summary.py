"""Many measured values in few numbers."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

DIGITS = 4  # significant ones: more would be noise


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all values do not exceed (nearest rank).

    Raises:
        ValueError: there are no values, or ``percent`` is not above 0 and at most 100.
    """
    if not values or not 0 < percent <= 100:
        raise ValueError(f"no percentile {percent} of {len(values)} values")
    rank = math.ceil(len(values) * percent / 100)
    return sorted(values)[rank - 1]


def describe(values: Sequence[float]) -> dict[str, float]:
    """How many values there are, the extremes, p50 and p99; only the number if there are none."""
    if not values:
        return {"n": 0}
    return {
        "n": len(values),
        "min": rounded(min(values)),
        "p50": rounded(percentile(values, 50)),
        "p99": rounded(percentile(values, 99)),
        "max": rounded(max(values)),
    }


def median_of(rows: Sequence[Mapping[str, Any]], key: str) -> float:
    """The median over repetitions of one figure; raises ``statistics.StatisticsError`` for none."""
    return rounded(statistics.median(float(row[key]) for row in rows))


def rounded(value: float) -> float:
    """A value with as many digits as it is worth."""
    if value == 0 or not math.isfinite(value):
        return value
    return round(value, DIGITS - 1 - math.floor(math.log10(abs(value))))
