"""Where a flow run's page is in Prefect's user interface."""

from __future__ import annotations

import re
from urllib import parse
from uuid import UUID

CLOUD_API = re.compile(r"/api/accounts/(?P<account>[^/]+)/workspaces/(?P<workspace>[^/]+)")
API_SUFFIX = "/api"


def ui_url(api_url: str) -> str:
    """The user interface of an API, as Prefect's own client derives it, without credentials.

    A server shows it beside its API; Prefect Cloud at the host ``app`` in place of ``api``.
    """
    parts = parse.urlsplit(without_credentials(api_url.rstrip("/")))
    place = parts.netloc
    cloud = CLOUD_API.fullmatch(parts.path)
    if cloud is None:
        path = parts.path.removesuffix(API_SUFFIX)
        return parse.urlunsplit((parts.scheme, place, path, "", ""))
    host = re.sub(r"^api\.", "app.", place)
    path = f"/account/{cloud['account']}/workspace/{cloud['workspace']}"
    return parse.urlunsplit((parts.scheme, host, path, "", ""))


def without_credentials(url: str) -> str:
    """An address that may be shown."""
    parts = parse.urlsplit(url)
    return parts._replace(netloc=parts.netloc.rpartition("@")[2]).geturl()


def run_link(ui: str, flow_run_id: UUID) -> str:
    """The page of a flow run."""
    return f"{ui.rstrip('/')}/runs/flow-run/{flow_run_id}"
