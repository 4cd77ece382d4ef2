from __future__ import annotations

import pytest

from executors.process import exit_codes


@pytest.mark.parametrize(
    ("code", "word"),
    [
        (1, "error"),
        (126, "permissions"),
        (127, "not found"),
        (125, "container"),
        (-9, "memory"),
        (137, "memory"),
        (247, "memory"),
        (-15, "terminate"),
        (143, "terminate"),
        (-11, "segmentation"),
        (139, "segmentation"),
        (-2, "interrupted"),
        (130, "interrupted"),
    ],
)
def test_known_codes_are_explained(code: int, word: str) -> None:
    assert word in (exit_codes.explain(code) or "")


@pytest.mark.parametrize("code", [0, 3, 9, 128, 255, -64])
def test_others_have_no_explanation(code: int) -> None:
    assert exit_codes.explain(code) is None


@pytest.mark.parametrize("number", [2, 4, 6, 9, 11, 15])
def test_a_signal_means_the_same_in_a_shells_notation(number: int) -> None:
    assert exit_codes.explain(-number) == exit_codes.explain(128 + number)
