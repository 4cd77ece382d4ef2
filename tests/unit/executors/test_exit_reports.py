"""What a job without Prefect's engine prints, and whether its exit code counts."""

from __future__ import annotations

import io
import logging

import pytest

from executors import errors, exit_reports


def test_the_exit_code_counts_where_that_is_said() -> None:
    assert exit_reports.parse("exit-code")
    assert not exit_reports.parse("engine")
    assert not exit_reports.parse(None)
    values: tuple[object, ...] = ("exit_code", True, {})
    for value in values:
        with pytest.raises(errors.ConfigurationError, match="neither 'engine' nor 'exit-code'"):
            exit_reports.parse(value)


def test_lines_are_logged_whole_whatever_comes_at_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    lines = exit_reports.Lines()
    for text in ("one\ntw", "o\r\n", "\n", "last"):
        lines.write(text)
    lines.flush()
    assert caplog.messages == ["one", "two", ""]
    lines.close()
    lines.close()
    assert caplog.messages == ["one", "two", "", "last"]


def test_neither_a_line_nor_the_last_ones_grow_without_bounds(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    lines = exit_reports.Lines()
    for _ in range(4 * exit_reports.LAST_LINES):
        lines.write("x" * (exit_reports.MAX_LINE + 1))
    assert max(map(len, caplog.messages)) == exit_reports.MAX_LINE
    assert len(lines.last()) < (exit_reports.MAX_LINE + 1) * exit_reports.LAST_LINES
    assert len(lines.last().splitlines()) == exit_reports.LAST_LINES


def test_what_is_no_text_is_read_all_the_same(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    with exit_reports.following(io.BufferedReader(io.BytesIO(b"a\xff\nb"))) as lines:
        pass
    assert lines.last() == "a\N{REPLACEMENT CHARACTER}\nb"
    with exit_reports.following(None) as nothing:
        pass
    assert nothing.last() == ""


def test_what_a_status_means_for_the_engine_alone_is_not_said() -> None:
    assert exit_reports.explanation(1, "the flow") is None
    assert exit_reports.explanation(127, "not found") == "not found"
