"""The command lines, statistics and charts of the benchmarks."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from benchmarks import chart, report, sampling, stub_api, summary

ROOT = Path(__file__).parents[3]
SCRIPTS = ("end_to_end", "dispatch", "burst", "scale", "cancel_recovery", "report")


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_explains_itself(script: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{script}", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


@pytest.mark.parametrize(
    ("values", "percent", "expected"),
    [
        ([5.0], 50, 5.0),
        ([1.0, 2.0], 50, 1.0),
        ([3.0, 1.0, 2.0], 50, 2.0),
        ([3.0, 1.0, 2.0], 100, 3.0),
        ([float(n) for n in range(1, 101)], 99, 99.0),
        ([float(n) for n in range(1, 11)], 99, 10.0),
    ],
)
def test_percentile_is_the_nearest_rank(
    values: list[float], percent: float, expected: float
) -> None:
    assert summary.percentile(values, percent) == expected


@pytest.mark.parametrize(("values", "percent"), [([], 50), ([1.0], 0), ([1.0], 101)])
def test_percentile_of_nothing_is_refused(values: list[float], percent: float) -> None:
    with pytest.raises(ValueError, match="percentile"):
        summary.percentile(values, percent)


def test_description_has_the_extremes() -> None:
    found = summary.describe([2.0, 1.0, 4.0])
    assert found == {"n": 3, "min": 1.0, "p50": 2.0, "p99": 4.0, "max": 4.0}
    assert summary.describe([]) == {"n": 0}


def test_median_is_over_repetitions() -> None:
    assert summary.median_of([{"x": 1}, {"x": 9}, {"x": 2.5}], "x") == 2.5


@pytest.mark.parametrize(
    ("value", "expected"), [(0.0, 0.0), (1234.567, 1235.0), (0.00123456, 0.001235), (-2.0, -2.0)]
)
def test_four_digits_are_kept(value: float, expected: float) -> None:
    assert summary.rounded(value) == expected
    assert math.isnan(summary.rounded(math.nan))


def test_cpu_and_memory_include_the_children() -> None:
    work = "import subprocess, sys; sum(range(2_000_000)); print(flush=True); sys.stdin.read()"
    parent = (
        "import subprocess, sys; c = subprocess.Popen([sys.executable, '-c', sys.argv[1]], "
        "stdin=sys.stdin, stdout=sys.stdout); c.wait()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", parent, work], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        assert sampling.count([process.pid]) == 1
        assert sampling.pss_bytes([process.pid]) > sampling.MIB
        assert sampling.cpu_seconds([process.pid]) > 0
        process.stdin.close()
    assert sampling.cpu_seconds([process.pid]) == 0
    assert sampling.pss_bytes([process.pid]) == 0


def test_chart_is_an_image_with_every_bar() -> None:
    rows = [chart.Bar("a & b", "ours", 2.0), chart.Bar("a & b", "theirs", 1.0)]
    image = ET.fromstring(chart.bars("Speed", "runs/s", rows))
    texts = [element.text for element in image.iter() if element.tag.endswith("text")]
    assert texts == ["Speed (runs/s)", "a & b: ours", "2", "a & b: theirs", "1"]
    with pytest.raises(ValueError, match="at least one"):
        chart.bars("Nothing", "runs/s", [])


def test_report_replaces_what_is_between_the_marks() -> None:
    text = "before <!-- x --> old <!-- end of x --> after"
    assert report.replaced(text, "x", r"new \1") == (
        "before <!-- x -->\nnew \\1\n<!-- end of x --> after"
    )
    with pytest.raises(ValueError, match="no marks"):
        report.replaced(text, "y", "new")


def test_page_has_the_marks_of_every_section() -> None:
    text = report.PAGE.read_text()
    for name in report.SECTIONS:
        assert report.replaced(text, name, "")


def test_stub_gives_a_run_to_whoever_claims_it() -> None:
    stub = stub_api.Stub(stub_api.Bodies())
    assert stub.answer("POST", "/stub/runs", b"2")[0] == 201
    poll = f"/work_pools/{stub_api.POOL}/get_scheduled_flow_runs"
    due = stub.answer("POST", poll, b'{"limit": 1}')[1]
    run_id = due.partition('"flow_run": {"id": "')[2][:36]
    transition_id = "3fa85f64-5717-4562-b3fc-2c963f66afa6"
    state = f'{{"type": "PENDING", "state_details": {{"transition_id": "{transition_id}"}}}}'
    body = f'{{"flow_runs": {{"id": {{"any_": ["{run_id}"]}}}}, "state": {state}}}'
    status, granted = stub.answer("POST", "/flow_runs/bulk_set_state", body.encode())
    assert status == 200
    assert '"ACCEPT"' in granted
    assert run_id in granted
    assert transition_id in stub.answer("GET", f"/flow_runs/{run_id}", b"")[1]
    assert stub.answer("GET", "/stub/runs", b"") == (200, "1")


def test_stub_notes_what_it_does_not_know() -> None:
    stub = stub_api.Stub(stub_api.Bodies())
    assert stub.answer("GET", "/variables/name/x", b"")[0] == 404
    assert stub_api.UNKNOWN in stub.answer("GET", "/stub/requests", b"")[1]
