"""Runs the tests that tell whether other releases of Prefect will do, and writes what they tell.

``python -m tests.compatibility`` runs the contract tests against the oldest server, and a set of
whole dispatchers with the oldest server and engine. It fails if a test does, or if the table in
docs/compatibility.md is another one; ``--write`` puts it there.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests import environments

ROOT = Path(__file__).parents[1]
DOCUMENT = ROOT / "docs" / "compatibility.md"
BEGIN, END = "<!-- table -->", "<!-- end of table -->"

# What an old server does otherwise, so that these cannot hold there; see the document.
DIFFERENCES = (
    "tests/contract/test_transitions.py::test_matrix[server-Paused-Cancelling-a]",
    "tests/contract/test_transitions.py::test_a_stored_result_protects_a_completed_run[server]",
    (
        "tests/contract/test_transitions.py::test_only_scheduled_runs_become_late_and_only_once"
        "[server-Late-This flow run is already marked late.]"
    ),
    (
        "tests/contract/test_concurrency_limits.py"
        "::test_a_retry_in_its_own_process_keeps_the_slot[server]"
    ),
)
GROUPS = {
    "the API as we use it": "tests/contract",
    "runs end as they should": "tests/integration/test_dispatch.py",
    "executed once": "tests/integration/test_exactly_once.py",
    "cancelled, with hooks": "tests/integration/test_cancel.py",
    "without Prefect inside": "tests/integration/test_exit_codes.py",
}
OF_SERVERS = "the API as we use it"
NOT_RUN = "-"


@dataclass(frozen=True)
class Combination:
    """Releases of Prefect: that of the server, and that of the flows' environment."""

    server: str
    engine: str
    groups: tuple[str, ...]


COMBINATIONS = (
    Combination(environments.OLDEST, environments.OLDEST, tuple(GROUPS)),
    Combination(
        environments.NEWEST,
        environments.OLDEST,
        tuple(group for group in GROUPS if group != OF_SERVERS),
    ),
)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run everything; exits with a message if something is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--write", action="store_true", help="write the table")
    options = parser.parse_args(arguments)
    if reason := environments.missing():
        sys.exit(reason)
    table = "\n".join(rows())
    before, _, rest = DOCUMENT.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    text = f"{before}{BEGIN}\n{table}\n{END}{after}"
    if options.write:
        DOCUMENT.write_text(text)
    elif text != DOCUMENT.read_text():
        sys.exit(f"{DOCUMENT.name} says something else; write it anew with --write:\n{table}")


def rows() -> Iterator[str]:
    """Run each combination and tell the rows of the table."""
    yield f"| server | flows | {' | '.join(GROUPS)} |"
    yield f"|{'---|' * (len(GROUPS) + 2)}"
    for each in COMBINATIONS:
        passed = run(each)
        cells = [f"{passed[group]} passed" if group in passed else NOT_RUN for group in GROUPS]
        yield f"| {each.server} | {each.engine} | {' | '.join(cells)} |"
    every = " | ".join("all tests" for _ in GROUPS)
    yield f"| {environments.NEWEST} | {environments.NEWEST} | {every} |"


def run(combination: Combination) -> dict[str, int]:
    """Run the groups of tests; return how many of each passed. Exits if one fails."""
    cache = ROOT / ".pytest_cache" / "d" / "environments"
    cache.mkdir(parents=True, exist_ok=True)
    server, engine = (
        str(environments.make(cache, release) / "bin" / "python")
        for release in (combination.server, combination.engine)
    )
    with tempfile.TemporaryDirectory() as directory:
        report = Path(directory) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-n", "3", "--dist", "loadfile"]
        command += [f"--junitxml={report}", *(GROUPS[group] for group in combination.groups)]
        command += [f"--deselect={each}" for each in DIFFERENCES]
        environ = {**os.environ, "TEST_PREFECT_SERVER": server, "DISPATCHER_PYTHON": engine}
        done = subprocess.run(command, env=environ, cwd=ROOT, check=False)
        if done.returncode != 0:
            sys.exit(done.returncode)
        cases = list(ElementTree.parse(report).getroot().iter("testcase"))
    modules = [case.attrib["classname"] for case in cases if case.find("skipped") is None]
    counted = {group: Path(GROUPS[group]).with_suffix("").parts for group in combination.groups}
    return {
        group: sum(module.startswith(".".join(parts)) for module in modules)
        for group, parts in counted.items()
    }


if __name__ == "__main__":
    main()
