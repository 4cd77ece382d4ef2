"""What every script does around its measurement: options, progress, the JSON of the results."""

from __future__ import annotations

import argparse
import json
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks import machine

RESULTS = Path(__file__).parent / "results"


class Record:
    """The results of one run of a script; ``say`` and ``add`` also tell the terminal."""

    def __init__(self, name: str, options: argparse.Namespace, argv: Sequence[str]) -> None:
        self.name = name
        self._options = options
        self._argv = list(argv)
        self._started = datetime.now(UTC)
        self._monotonic = time.monotonic()
        self._results: list[dict[str, Any]] = []

    def say(self, words: str) -> None:
        """One line on how far the measurement is."""
        print(f"[{time.monotonic() - self._monotonic:6.1f} s] {words}", file=sys.stderr, flush=True)

    def add(self, **figures: Any) -> None:
        """Keep one row of results, and write the file, so that an abort loses nothing."""
        self._results.append(figures)
        self.say(json.dumps({key: value for key, value in figures.items() if _is_short(value)}))
        self._write()

    @property
    def rows(self) -> list[dict[str, Any]]:
        """What was added so far."""
        return list(self._results)

    def _write(self) -> None:
        path: Path = self._options.output or RESULTS / f"{self.name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self._document(), indent=1) + "\n")

    def _document(self) -> Mapping[str, Any]:
        options = {key: value for key, value in vars(self._options).items() if key != "output"}
        return {
            "benchmark": self.name,
            "command": shlex.join(["python", "-m", f"benchmarks.{self.name}", *self._argv]),
            "started": self._started.isoformat(timespec="seconds"),
            "seconds": round(time.monotonic() - self._monotonic),
            "machine": machine.machine(),
            "versions": machine.versions(),
            "options": options,
            "results": self._results,
        }


def parser(description: str | None) -> argparse.ArgumentParser:
    """A command line with the option that every script has."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    made.add_argument(
        "--output", type=Path, default=None, help="JSON file (default: benchmarks/results/)"
    )
    return made


def _is_short(value: object) -> bool:
    return not isinstance(value, (list, dict)) or len(json.dumps(value)) < 120
