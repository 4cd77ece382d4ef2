"""Whether a worker that starts may join the workers that are there in its Redis already."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from dispatcher.ledger import fleet

logger = logging.getLogger(__name__)


class ForeignFleetError(Exception):
    """They belong to another dispatcher; the message says what to do."""


def check(
    nodes: Iterable[fleet.Node],
    *,
    worker_name: str,
    prefect: str,
    warn: Callable[[str], None] = logger.warning,
) -> None:
    """Compare what the workers say of themselves with what this one is told.

    By its name a dispatcher knows which runs are its own, so two names are two dispatchers. Two
    addresses may well lead to one Prefect server.

    Raises:
        ForeignFleetError: with them this worker would be one fleet of two dispatchers.
    """
    for node in nodes:
        if node.worker_name not in ("", worker_name):
            raise ForeignFleetError(
                f"worker {node.name} on this Redis belongs to another dispatcher: its"
                f" DISPATCHER_WORKER_NAME is {node.worker_name!r}, and this one's is"
                f" {worker_name!r}; stop it first, or set another DISPATCHER_NAMESPACE here"
            )
        if node.prefect not in ("", prefect):
            warn(
                f"worker {node.name} on this Redis asks Prefect at {node.prefect}, and this one at"
                f" {prefect}; if these are two servers, set another DISPATCHER_NAMESPACE here"
            )
            return
