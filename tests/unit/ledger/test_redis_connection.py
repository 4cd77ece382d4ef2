"""The connection to Redis, across forks."""

from __future__ import annotations

import os
import signal
import threading

from dispatcher.ledger import redis_connection
from tests import redis_server

SECONDS = 10


def test_a_fork_can_ask_redis_although_a_thread_was_busy_with_the_pool_at_that_moment(
    valkey_server: redis_server.RedisServer,
) -> None:
    connection = redis_connection.connect_redis(valkey_server.url)
    assert connection.ping()
    busy, done = threading.Event(), threading.Event()

    def keep_busy() -> None:
        with connection.connection_pool._lock:
            busy.set()
            done.wait(SECONDS)

    thread = threading.Thread(target=keep_busy)
    thread.start()
    busy.wait(SECONDS)
    child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)
        os._exit(0 if connection.ping() else 1)
    _, status = os.waitpid(child, 0)
    done.set()
    thread.join()
    connection.close()
    assert status == 0
