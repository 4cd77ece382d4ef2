"""What the URL of a Redis says: one server, one that Sentinels know, or a cluster."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from urllib import parse

SENTINEL = ("sentinel://", "rediss+sentinel://")
CLUSTER = ("redis+cluster://", "rediss+cluster://")
SCHEMES = ("redis://", "rediss://", "unix://", *SENTINEL, *CLUSTER)
EXPECTED = "redis://, rediss://, unix://, sentinel://, rediss+sentinel://"
REDIS_PORT, SENTINEL_PORT = 6379, 26379
# redis-py's own names, as in a URL that it reads itself.
TLS_OPTIONS = frozenset({"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs"})


@dataclass(frozen=True)
class SentinelAddress:
    """A Redis by the name under which Sentinels know it; whoever is its primary now is meant.

    ``username`` and ``password`` are for Redis, ``sentinel_password`` for the Sentinels. ``tls``
    holds redis-py's options for both if they are to be reached by TLS, else it is None.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str] | None = None


@dataclass(frozen=True)
class ClusterAddress:
    """Some nodes of a Redis Cluster, by which the others are found."""

    nodes: tuple[tuple[str, int], ...]
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: Mapping[str, str] | None = None


def parse_sentinel(url: str) -> SentinelAddress:
    """Take ``sentinel://[user:password@]host[:port],host…/name[?db=0&sentinel_password=…]`` apart.

    Raises:
        ValueError: it is none; the text holds nothing of the URL, which may have a password.
    """
    parts, query = _split(url, {"db", "sentinel_password"})
    username, password = _credentials(parts)
    service = parse.unquote(parts.path.strip("/"))
    hosts = _hosts(parts, SENTINEL_PORT)
    if not service or "/" in service or not hosts:
        raise ValueError(
            "it must name Sentinels and what they watch: sentinel://host:26379,host:26379/name"
        )
    database = query.get("db", "0")
    if not database.isdecimal():
        raise ValueError("the number of the database is no number")
    return SentinelAddress(
        sentinels=hosts,
        service=service,
        database=int(database),
        username=username,
        password=password,
        sentinel_password=query.get("sentinel_password"),
        tls=_tls(parts, query),
    )


def parse_cluster(url: str) -> ClusterAddress:
    """Take ``redis+cluster://[user:password@]host[:port],host…`` apart.

    Raises:
        ValueError: as above.
    """
    parts, query = _split(url, set())
    username, password = _credentials(parts)
    nodes = _hosts(parts, REDIS_PORT)
    if not nodes or parts.path.strip("/") not in ("", "0"):
        raise ValueError(
            "it must name nodes of a cluster, which has one database: redis+cluster://host:6379"
        )
    return ClusterAddress(nodes, username, password, _tls(parts, query))


def _split(url: str, known: set[str]) -> tuple[parse.SplitResult, dict[str, str]]:
    parts = parse.urlsplit(url)
    query = dict(parse.parse_qsl(parts.query))
    if parts.scheme.startswith("rediss"):
        known = known | TLS_OPTIONS
    if unknown := set(query) - known:
        names = ", ".join(sorted(unknown))
        raise ValueError(f"of a URL that begins with {parts.scheme}://, {names} is not known")
    return parts, query


def _credentials(parts: parse.SplitResult) -> tuple[str | None, str | None]:
    username, _, password = parts.netloc.rpartition("@")[0].partition(":")
    return parse.unquote(username) or None, parse.unquote(password) or None


def _hosts(parts: parse.SplitResult, port: int) -> tuple[tuple[str, int], ...]:
    """The hosts with their ports; empty if one has no name."""
    texts = parts.netloc.rpartition("@")[2].split(",")
    return tuple(_host_and_port(text, port) for text in texts) if all(texts) else ()


def _host_and_port(text: str, default: int) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text, default
    if not port.isdecimal():
        raise ValueError("a port is no number")
    return host, int(port)


def _tls(parts: parse.SplitResult, query: Mapping[str, str]) -> Mapping[str, str] | None:
    if not parts.scheme.startswith("rediss"):
        return None
    return {name: text for name, text in query.items() if name in TLS_OPTIONS}
