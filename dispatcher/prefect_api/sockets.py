"""The connections of one process to the Prefect API, kept open between requests."""

from __future__ import annotations

import ssl
import urllib.request

import httpx

# Below the 5 s after which a Prefect server closes an idle connection: one that it closes at the
# moment of re-use costs a retry.
KEEPALIVE_SECONDS = 4.0
MAX_CONNECTIONS = 100  # of one process; no more requests than that are sent at once


def new_sockets(url: httpx.URL, *, tls: ssl.SSLContext | None, http2: bool) -> httpx.BaseTransport:
    """A pool of connections, through the proxy that the environment names for the address.

    Without the library's client on top: what that adds to each request, such as cookies and
    redirects, is of no use here and costs as much time as all the rest.
    """
    proxy = None
    if not urllib.request.proxy_bypass(url.host):
        proxies = urllib.request.getproxies()
        proxy = proxies.get(url.scheme) or proxies.get("all")
    limits = httpx.Limits(
        max_connections=MAX_CONNECTIONS,
        max_keepalive_connections=MAX_CONNECTIONS,
        keepalive_expiry=KEEPALIVE_SECONDS,
    )
    return httpx.HTTPTransport(
        verify=tls or httpx.create_ssl_context(), limits=limits, proxy=proxy, http2=http2
    )
