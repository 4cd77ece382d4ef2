"""The job variable ``memory_limit``: what it may be, and what a run's page says of it."""

from __future__ import annotations

from typing import Any

import pytest

from executors import errors, memory_limits


@pytest.mark.parametrize(
    ("value", "size"),
    [
        (None, None),
        ("2GiB", 2 * 2**30),
        ("2 GiB", 2 * 2**30),
        ("512MB", 512 * 10**6),
        ("1.5gib", 3 * 2**29),
        (2**30, 2**30),
        (str(2**30), 2**30),
    ],
)
def test_a_limit_is_an_amount_with_its_unit_or_a_number_of_bytes(value: Any, size: int) -> None:
    assert memory_limits.parse(value) == size


@pytest.mark.parametrize(
    "value", ["", "2 gigs", "GiB", "2", 2, 0, -5, True, "-1GiB", [], {}, "nan"]
)
def test_what_is_no_amount_of_memory_is_refused_with_an_example(value: Any) -> None:
    with pytest.raises(errors.ConfigurationError, match=r"memory_limit.*2GiB"):
        memory_limits.parse(value)


def test_the_message_names_limit_and_peak() -> None:
    said = memory_limits.describe_excess(2 * 2**30, 2200 * 2**20)
    assert "limit is 2.0 GiB" in said
    assert "peak was 2.1 GiB" in said


def test_a_peak_that_the_kernel_does_not_tell_is_the_limit() -> None:
    assert "peak was 2.0 GiB" in memory_limits.describe_excess(2 * 2**30, 0)
