"""Puts the results into docs/benchmarks.md: tables between its marks, and charts beside it.

Every figure in the tables comes from ``benchmarks/results/*.json``; figures that were measured
repeatedly are medians. Run it after the benchmarks.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import chart, record, summary

DOCS = Path(__file__).parents[1] / "docs"
PAGE, CHARTS = DOCS / "benchmarks.md", DOCS / "charts"

Rows = Sequence[Mapping[str, Any]]
WAIT = "scheduled_to_running_seconds"
START = "pending_to_running_seconds"
RUNS, TASKS = "runs/s, poll to close", "bare Celery, tasks/s"


def main(argv: Sequence[str] | None = None) -> None:
    """Rewrite the page and the charts."""
    argparse.ArgumentParser(description=__doc__).parse_args(argv)
    text = PAGE.read_text()
    for name, section in SECTIONS.items():
        path = record.RESULTS / f"{name}.json"
        if path.exists():
            document = json.loads(path.read_text())
            text = replaced(text, name, f"{_provenance(document)}\n\n{section(document)}")
    PAGE.write_text(text)


def replaced(text: str, name: str, content: str) -> str:
    """The text with what is between the marks of a section replaced.

    Raises:
        ValueError: there are no such marks.
    """
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    pattern = re.compile(f"{re.escape(begin)}.*?{re.escape(end)}", re.DOTALL)
    if not pattern.search(text):
        raise ValueError(f"the page has no marks for {name}")
    return pattern.sub(lambda _: f"{begin}\n{content}\n{end}", text)


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A table in Markdown; floats without needless digits."""
    lines = [head, ["---"] * len(head), *([_cell(value) for value in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _provenance(document: Mapping[str, Any]) -> str:
    machine, versions = document["machine"], document["versions"]
    known = ", ".join(f"{name} {version}" for name, version in versions.items())
    return (
        f"`{document['command']}`\n\n"
        f"{document['started']}, {document['seconds']} s; {machine['processor']}, "
        f"{machine['cores']} cores, {machine['memory_gib']} GiB, {machine['system']}; {known}."
    )


def _write_chart(name: str, title: str, unit: str, rows: Sequence[chart.Bar]) -> str:
    CHARTS.mkdir(exist_ok=True)
    (CHARTS / f"{name}.svg").write_text(chart.bars(title, unit, rows))
    return f"![{title}](charts/{name}.svg)"


# End to end


def _end_to_end(document: Mapping[str, Any]) -> str:
    batches = _grouped(document["results"], "batch", ("database", "flow", "contender"))
    lines, speed, cpu, wait = [], [], [], []
    for (database, flow, contender), rows in batches.items():
        figures = {
            key: summary.median_of(rows, key)
            for key in ("runs_per_second", "cpu_seconds_per_run", "server_cpu_seconds_per_run")
        }
        p50 = summary.median_of([row[WAIT] for row in rows], "p50")
        group = f"{flow}, {database}"
        speed.append(chart.Bar(group, contender, figures["runs_per_second"]))
        cpu.append(chart.Bar(group, contender, figures["cpu_seconds_per_run"]))
        wait.append(chart.Bar(group, contender, p50))
        lines.append(
            [
                database,
                flow,
                contender,
                f"{len(rows)} x {rows[0]['runs']}",
                figures["runs_per_second"],
                p50,
                summary.median_of([row[WAIT] for row in rows], "p99"),
                summary.median_of([row[START] for row in rows], "p50"),
                figures["cpu_seconds_per_run"],
                figures["server_cpu_seconds_per_run"],
                summary.median_of(rows, "idle_mib"),
                summary.median_of(rows, "peak_mib"),
            ]
        )
    head = (
        "database", "flow", "by", "runs", "runs/s", "Scheduled to Running p50, s", "p99, s",
        "Pending to Running p50, s", "CPU s/run", "server CPU s/run", "idle MiB", "peak MiB",
    )  # fmt: skip
    parts = [
        table(head, lines),
        _write_chart("end-to-end-speed", "Flow runs per second", "more is better", speed),
        _write_chart("end-to-end-cpu", "CPU seconds per run", "less is better", cpu),
        _write_chart("end-to-end-wait", "Scheduled to Running, p50", "s, less is better", wait),
        _singles(document["results"]),
    ]
    return "\n\n".join(filter(None, parts))


def _singles(results: Rows) -> str:
    rows = [
        [row["database"], row["contender"], row[WAIT]["n"], row[WAIT]["p50"], row[WAIT]["max"]]
        for row in results
        if row["what"] == "singles"
    ]
    if not rows:
        return ""
    head = ("database", "by", "single runs", "Scheduled to Running p50, s", "max, s")
    return f"One run at a time, of the empty flow, to a side that is idle:\n\n{table(head, rows)}"


def _grouped(
    results: Rows, what: str, keys: Sequence[str]
) -> dict[tuple[str, ...], list[Mapping[str, Any]]]:
    groups: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in results:
        if row["what"] == what:
            groups.setdefault(tuple(row[key] for key in keys), []).append(row)
    return dict(sorted(groups.items()))


# The others


def _dispatch(document: Mapping[str, Any]) -> str:
    results = document["results"]
    ours = _grouped(results, "dispatcher", ("concurrency",))
    bare = _grouped(results, "bare Celery", ("concurrency",))
    columns = [_ceiling(ours[slots], bare[slots]) for slots in ours]
    lines = [[name, *(column[name] for column in columns)] for name in columns[0]]
    last = results[-1]
    requests = [[name, count] for name, count in last["requests"].items()]
    bars = []
    for (slots,), column in zip(ours, columns, strict=True):
        bars.append(chart.Bar(f"{slots} slots", "dispatcher, runs", column[RUNS]))
        bars.append(chart.Bar(f"{slots} slots", "bare Celery, tasks", column[TASKS]))
    return "\n\n".join(
        [
            table(("figure", *(f"{slots} slots" for (slots,) in ours)), lines),
            table(("request", f"times in {last['runs']} runs"), requests),
            _write_chart("dispatch", "Through poll, claim, Celery, close", "per second", bars),
        ]
    )


def _ceiling(ours: Rows, bare: Rows) -> dict[str, float]:
    runs = summary.median_of(ours, "runs_per_second")
    tasks = summary.median_of(bare, "tasks_per_second")
    cpu = [row["cpu_ms_per_run"] for row in ours]
    memory = ours[-1]["control_worker_mib"]
    return {
        RUNS: runs,
        TASKS: tasks,
        "share of bare Celery, %": summary.rounded(100 * runs / tasks),
        "API requests per run": summary.median_of(ours, "requests_per_run"),
        **{
            f"CPU ms/run: {name.replace('_', ' ')}": summary.median_of(cpu, name) for name in cpu[0]
        },
        **{f"control worker, MiB, {when}": memory[when] for when in ("first", "last", "peak")},
    }


def _burst(document: Mapping[str, Any]) -> str:
    keys = ("runs", "first_claim_seconds", "all_claimed_seconds", "claims_per_second")
    lines = [
        [row["server"], *(row[key] for key in (*keys, "cpu_ms_per_claim")), *_memory(row)]
        for row in document["results"]
    ]
    head = (
        "server", "runs", "first claimed, s", "all claimed, s", "claims/s", "CPU ms/claim",
        "control worker before, MiB", "at its peak", "after",
    )  # fmt: skip
    return table(head, lines)


def _memory(row: Mapping[str, Any]) -> list[object]:
    memory = row["control_worker_mib"]
    return [memory["before"], memory["peak"], memory["after"]]


def _scale(document: Mapping[str, Any]) -> str:
    results = document["results"]
    idle = [
        [row["workers"], row["requests_per_minute"], row["cpu_percent_of_a_core"], row["mib"]]
        for row in results
        if row["what"] == "idle"
    ]
    slots = [
        [row["pool"], row["slots"], row["run_worker_mib"]]
        for row in results
        if row["what"] == "slots"
    ]
    prices = [
        [row["pool"], f"{row['from_slots']} to {row['to_slots']}, for each", row["mib_per_slot"]]
        for row in results
        if row["what"] == "price of a slot"
    ]
    ledger = [
        [
            row["operation"],
            row["open_claims"],
            *(row["milliseconds"][key] for key in ("p50", "p99")),
        ]
        for row in results
        if row["what"] == "ledger"
    ]
    return "\n\n".join(
        [
            table(("idle workers", "API requests/min", "CPU, % of a core", "MiB in all"), idle),
            table(("Celery pool", "slots, a flow in each", "MiB of the worker"), [*slots, *prices]),
            table(("ledger operation", "open claims", "p50, ms", "p99, ms"), sorted(ledger)),
        ]
    )


def _cancel_recovery(document: Mapping[str, Any]) -> str:
    lines: list[list[object]] = []
    for row in document["results"]:
        by = row["contender"]
        if row["what"] == "cancel":
            lines.append([by, "Cancelling to Cancelled", *_spread(row["seconds"])])
        elif "crashed_seconds" in row:
            lines.append([by, "worker killed, to Crashed", *_spread(row["crashed_seconds"])])
            again = _spread(row["running_again_seconds"])
            lines.append([by, "worker killed, to Running again", *again])
        else:
            after = f"after {row['watched_seconds']:g} s"
            lines.append([by, f"worker killed: {row['state']} {after}", 1, "", ""])
    return table(("by", "what", "times", "p50, s", "max, s"), lines)


def _spread(figures: Mapping[str, float]) -> list[object]:
    return [figures["n"], figures["p50"], figures["max"]]


SECTIONS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "end_to_end": _end_to_end,
    "dispatch": _dispatch,
    "burst": _burst,
    "scale": _scale,
    "cancel_recovery": _cancel_recovery,
}


if __name__ == "__main__":
    main()
