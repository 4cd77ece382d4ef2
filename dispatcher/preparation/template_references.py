"""What job templates refer to: blocks and variables, read anew for each run."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from dispatcher.prefect_api import client, schemas
from executors import templates


class References:
    """Blocks and variables from the Prefect API; never kept, since blocks hold secrets."""

    def __init__(self, api: client.PrefectClient) -> None:
        self._api = api

    def read_block_document(self, type_slug: str, name: str) -> schemas.BlockDocument | None:
        """Return the block with its secrets in clear, or ``None`` if there is no such block."""
        return self._api.read_block_document(type_slug, name)

    def read_block_document_by_id(self, block_document_id: str) -> schemas.BlockDocument | None:
        """Return the block with its secrets in clear, or ``None`` if there is no such block."""
        try:
            return self._api.read_block_document_by_id(UUID(block_document_id))
        except ValueError:
            return None

    def read_variable(self, name: str) -> Any:
        """Return the variable's value, or :data:`executors.templates.MISSING`."""
        variable = self._api.read_variable(name)
        return templates.MISSING if variable is None else variable.value
