"""The directory in which a job runs."""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

logger = logging.getLogger(__name__)

PREFIX = "flow-run-"
OWNER_ONLY = 0o700


@contextlib.contextmanager
def working_directory(configured: Path | None) -> Iterator[Path]:
    """The configured directory, left as it is; or a fresh one, removed afterwards.

    Prefect's engine copies the flow's code into its directory, so runs never share one by chance.
    """
    if configured is not None:
        yield configured
        return
    # Not TemporaryDirectory: its finalizer would also run in a fork of this process.
    directory = Path(tempfile.mkdtemp(prefix=PREFIX))
    try:
        yield directory
    finally:
        remove(directory)


def remove(directory: Path) -> None:
    """Remove a tree, whatever its permissions; what cannot be removed is logged and left."""
    with contextlib.suppress(OSError):
        shutil.rmtree(directory)
    try:
        if directory.exists():
            unlock(directory)
            shutil.rmtree(directory)
    except OSError as error:
        logger.warning("Working directory %s could not be removed: %s", directory, error)


def unlock(directory: Path) -> None:
    """Let the owner delete from every directory of the tree, without following links."""
    directory.chmod(OWNER_ONLY)
    for parent, names, _ in os.walk(directory):
        for name in names:
            child = Path(parent, name)
            if not child.is_symlink():
                child.chmod(OWNER_ONLY)
