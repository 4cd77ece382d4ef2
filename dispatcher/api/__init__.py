"""The Prefect REST API as this product uses it: schemas, transport, client."""

from __future__ import annotations
