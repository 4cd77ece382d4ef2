"""What the URL of a Redis says: one server, or one that Sentinels know."""

from __future__ import annotations

from dataclasses import dataclass, field
from urllib import parse

SENTINEL = "sentinel://"
SCHEMES = ("redis://", "rediss://", "unix://", SENTINEL)
SENTINEL_PORT = 26379


@dataclass(frozen=True)
class SentinelAddress:
    """A Redis by the name under which Sentinels know it; whoever is its primary now is meant.

    ``username`` and ``password`` are for Redis, ``sentinel_password`` for the Sentinels.
    """

    sentinels: tuple[tuple[str, int], ...]
    service: str
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    sentinel_password: str | None = field(default=None, repr=False)


def parse_sentinel(url: str) -> SentinelAddress:
    """Take ``sentinel://[user:password@]host[:port],host…/name[?db=0&sentinel_password=…]`` apart.

    Raises:
        ValueError: it is none; the text holds nothing of the URL, which may have a password.
    """
    parts = parse.urlsplit(url)
    credentials, _, hosts = parts.netloc.rpartition("@")
    username, _, password = credentials.partition(":")
    query = dict(parse.parse_qsl(parts.query))
    service = parse.unquote(parts.path.strip("/"))
    if not service or "/" in service or not all(hosts.split(",")):
        raise ValueError(
            "it must name Sentinels and what they watch: sentinel://host:26379,host:26379/name"
        )
    if unknown := set(query) - {"db", "sentinel_password"}:
        raise ValueError(f"of a Sentinel's URL, {', '.join(sorted(unknown))} is not known")
    try:
        return SentinelAddress(
            sentinels=tuple(_host_and_port(host) for host in hosts.split(",")),
            service=service,
            database=int(query.get("db", "0")),
            username=parse.unquote(username) or None,
            password=parse.unquote(password) or None,
            sentinel_password=query.get("sentinel_password"),
        )
    except ValueError:
        raise ValueError("a port or the number of the database is no number") from None


def _host_and_port(text: str) -> tuple[str, int]:
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        return text, SENTINEL_PORT
    return host, int(port)
