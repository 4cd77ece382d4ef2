"""How much memory a run may use, and what its page says if it used more."""

from __future__ import annotations

from typing import Any

from pydantic import ByteSize, TypeAdapter, ValidationError

from executors import errors

LIMIT_VARIABLE = "memory_limit"

# Below it no interpreter starts, so a smaller number is a mistake: "2" for 2 GiB.
SMALLEST = 4 * 2**20

_SIZE = TypeAdapter(ByteSize)


def parse(value: Any) -> int | None:
    """Return the bytes that the job variable ``memory_limit`` stands for; None if it is not set.

    ``"2GiB"``, ``"512 MB"`` and a number of bytes are understood. Raises ConfigurationError: a run
    whose limit nobody understands must not run without one.
    """
    if value is None:
        return None
    try:
        size = None if isinstance(value, bool) else int(_SIZE.validate_python(value))
    except ValidationError:
        size = None
    if size is None or size < SMALLEST:
        raise errors.ConfigurationError(
            f"The job variable {LIMIT_VARIABLE} is {value!r}, which is no amount of memory that a "
            'run could do with. Write it with its unit, "2GiB" or "512MiB" for example.'
        )
    return size


def describe_excess(limit: int, peak: int) -> str:
    """Say why a job was killed."""
    return (
        f"It used more memory than it may: its limit is {in_words(limit)} (job variable "
        f"{LIMIT_VARIABLE}), its peak was {in_words(max(peak, limit))}. All its processes count. "
        "Raise the limit, or have the flow use less."
    )


def in_words(size: int) -> str:
    """A number of bytes as people write it."""
    return ByteSize(size).human_readable(separator=" ")
