"""Whether a component answers. Each check takes a second at most and never raises."""

from __future__ import annotations

import http.client

import redis

from dispatcher.standalone import ports

ANSWER_SECONDS = 1.0


def http_answers(port: int, path: str) -> bool:
    """Return whether GET on the loopback port gives a 200, whatever proxies are configured."""
    connection = http.client.HTTPConnection(ports.LOOPBACK, port, timeout=ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        return connection.getresponse().status == http.client.OK
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def redis_answers(url: str) -> bool:
    """Return whether the server has loaded its data and takes the password."""
    timeouts = {"socket_timeout": ANSWER_SECONDS, "socket_connect_timeout": ANSWER_SECONDS}
    client = redis.Redis.from_url(url, **timeouts)
    try:
        return bool(client.ping())
    except redis.RedisError:
        return False
    finally:
        client.close()
