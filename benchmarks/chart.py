"""Bar charts as SVG, by hand: they need no library, and a change of a figure is a readable diff."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax import saxutils

WIDTH, LABEL_WIDTH, VALUE_WIDTH = 760, 250, 90  # pixels
BAR_HEIGHT, GAP, GROUP_GAP = 20, 4, 14
TITLE_HEIGHT, MARGIN = 46, 14
COLOURS = ("#2563eb", "#f97316", "#10b981", "#a855f7")  # in the order of first use
FONT = 'font-family="sans-serif" font-size="13"'


@dataclass(frozen=True)
class Bar:
    """One bar: ``series`` says whose it is and gives the colour."""

    group: str
    series: str
    value: float


def bars(title: str, unit: str, rows: Sequence[Bar]) -> str:
    """A chart of horizontal bars, grouped in the order given.

    Raises:
        ValueError: there is nothing to show.
    """
    if not rows:
        raise ValueError("a chart needs at least one bar")
    colours = _colours(rows)
    scale = (WIDTH - LABEL_WIDTH - VALUE_WIDTH) / (max(row.value for row in rows) or 1)
    parts, y, group = [], float(TITLE_HEIGHT), rows[0].group
    for row in rows:
        if row.group != group:
            y, group = y + GROUP_GAP, row.group
        parts += _bar(row, y, scale, colours[row.series])
        y += BAR_HEIGHT + GAP
    height = y + MARGIN
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height:g}" '
        f'viewBox="0 0 {WIDTH} {height:g}" {FONT}>'
    )
    background = f'<rect width="{WIDTH}" height="{height:g}" fill="white"/>'
    heading = _text(MARGIN, MARGIN + 12, f"{title} ({unit})", 'font-weight="bold"')
    return "\n".join([head, background, heading, *parts, "</svg>"]) + "\n"


def _colours(rows: Sequence[Bar]) -> dict[str, str]:
    series = dict.fromkeys(row.series for row in rows)
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(series)}


def _bar(row: Bar, y: float, scale: float, colour: str) -> list[str]:
    length, middle = max(row.value * scale, 1), y + BAR_HEIGHT / 2 + 4.5
    label = f"{row.group}: {row.series}" if row.group else row.series
    place = f'x="{LABEL_WIDTH}" y="{y:g}" width="{length:.1f}" height="{BAR_HEIGHT}"'
    return [
        _text(LABEL_WIDTH - 8, middle, label, 'text-anchor="end"'),
        f'<rect {place} fill="{colour}"/>',
        _text(LABEL_WIDTH + length + 6, middle, f"{row.value:g}"),
    ]


def _text(x: float, y: float, words: str, attributes: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" {attributes}>{saxutils.escape(words)}</text>'
