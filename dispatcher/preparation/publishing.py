"""Sending claimed runs under the names by which people know them."""

from __future__ import annotations

import contextlib
from typing import Protocol
from uuid import UUID

from dispatcher import errors
from dispatcher.ledger import claims
from dispatcher.prefect_api import catalog, schemas, ui_links


class Messenger(Protocol):
    """What the parts need of Celery."""

    def send_execute(
        self,
        run: schemas.FlowRun,
        claim: claims.NewClaim,
        pool: str,
        *,
        attempt: int,
        node: str = claims.ANYBODY,
        title: str = "",
        page: str = "",
    ) -> None:
        """Send a claimed run to a worker, to be shown under a title, with a link to its page."""

    def send_poll(self, pool: str) -> None:
        """Ask for a poll now."""

    def send_cancel(self, pool: str) -> None:
        """Ask for a look for runs to cancel now."""

    def send_recover(self, pool: str) -> None:
        """Ask for a look at what nobody takes care of now."""

    def revoke(self, claim_id: UUID) -> None:
        """Discard a claim's task if it waits, wake it if it runs."""

    def tell_end(self, claim_id: UUID, end: str) -> None:
        """Tell whoever watches how an execution ended whose worker cannot."""


class Publisher:
    """Publishes claimed runs as ``flow/deployment``; ``ui_url`` is where Prefect shows them."""

    def __init__(self, messenger: Messenger, known: catalog.Catalog, ui_url: str) -> None:
        self._messenger = messenger
        self._catalog = known
        self._ui_url = ui_url

    def publish(
        self,
        run: schemas.FlowRun,
        claim: claims.NewClaim,
        pool: str,
        attempt: int,
        node: str = claims.ANYBODY,
    ) -> None:
        """Send a claimed run to a worker; without a title if Prefect does not tell its names."""
        title = ""
        with contextlib.suppress(errors.ApiError):
            title = self._catalog.title(run)
        page = ui_links.run_link(self._ui_url, run.id)
        self._messenger.send_execute(
            run, claim, pool, attempt=attempt, node=node, title=title, page=page
        )
