"""Redis as it is run in production: behind Sentinels, and with TLS and users of few rights."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path

import redis

from tests import redis_server, waiting

SERVICE = "prime"
READY_SECONDS = 60.0
# How long a primary does not answer before the Sentinels agree on another one.
DOWN_MILLISECONDS = 1500

PASSWORD = "redis/pass-that-nobody-may-see"
QUOTED_PASSWORD = "redis%2Fpass-that-nobody-may-see"

# The least that suffices, see docs/deploy.md.
RIGHTS = (
    "~{dispatcher}:*",
    "~dispatcher.*",
    "~_kombu.*",
    "~celeryev.*",
    "~unacked*",
    "~*.celery.pidbox*",
    # Patterns have to be the very same, with the number of the database.
    "&/0.celery.pidbox",
    "&/0.celeryev/*",
    "&/0.celeryev/worker.*",
    "-@all",
    "+@read",
    "+@write",
    "+@pubsub",
    "+@scripting",
    "+@connection",
    "+@transaction",
    "-@dangerous",
    "+time",
)


def missing() -> str | None:
    """Say what is not installed; None if nothing is."""
    for program in ("redis-server", "redis-sentinel", "openssl"):
        if shutil.which(program) is None:
            return f"{program} is not installed"
    return None


class Server:
    """One server, Redis or Sentinel, on a loopback port."""

    def __init__(self, program: str, directory: Path, options: Sequence[str]) -> None:
        directory.mkdir(parents=True)
        self.directory = directory
        config = directory / "server.conf"
        config.write_text("\n".join(["bind 127.0.0.1", f"dir {directory}", *options]) + "\n")
        self._command = [program, str(config)]
        self.start()

    def start(self) -> None:
        """Start it, with what it has kept if it keeps anything."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait()


class Watched:
    """A primary, a replica, and three Sentinels that watch them; a context manager."""

    def __init__(self, directory: Path) -> None:
        self.ports = [redis_server.free_port() for _ in range(2)]
        self.sentinel_ports = [redis_server.free_port() for _ in range(3)]
        self._directory = directory
        self._servers: list[Server] = []
        self._stopped: Server | None = None

    @property
    def url(self) -> str:
        """The address as the dispatcher is told it."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        return f"sentinel://{hosts}/{SERVICE}"

    def __enter__(self) -> Watched:
        first, second = self.ports
        replica = [f"port {second}", f"replicaof 127.0.0.1 {first}"]
        for name, options in (("first", [f"port {first}"]), ("second", replica)):
            self._servers.append(
                Server(
                    "redis-server", self._directory / name, [*options, 'save ""', "appendonly yes"]
                )
            )
        waiting.wait_for(self._is_replicated, seconds=READY_SECONDS, what="the replica follows")
        for number, port in enumerate(self.sentinel_ports):
            options = [
                f"port {port}",
                f"sentinel monitor {SERVICE} 127.0.0.1 {first} 2",
                f"sentinel down-after-milliseconds {SERVICE} {DOWN_MILLISECONDS}",
                f"sentinel failover-timeout {SERVICE} 5000",
            ]
            directory = self._directory / f"sentinel-{number}"
            self._servers.append(Server("redis-sentinel", directory, options))
        waiting.wait_for(self._is_watched, seconds=READY_SECONDS, what="the Sentinels know all")
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for server in reversed(self._servers):
            server.stop()

    def primary(self) -> int:
        """The port of who is the primary now, by what the Sentinels say."""
        with self._client(self.sentinel_ports[0]) as client:
            address = client.sentinel_get_master_addr_by_name(SERVICE)
            return int(address[1]) if address else 0

    def new_url(self) -> str:
        """The address; there is one database for all who ask."""
        return self.url

    def stop(self) -> None:
        """Kill the primary."""
        self._stopped = self._servers[self.ports.index(self.primary())]
        self._stopped.stop()

    def start(self) -> None:
        """Start what was killed; it is a replica as soon as the Sentinels see it."""
        assert self._stopped is not None
        self._stopped.start()

    def kill_primary(self) -> None:
        """Kill the primary and wait until the other one has taken over."""
        before = self.primary()
        self.stop()
        waiting.wait_for(
            lambda: self.primary() != before, seconds=READY_SECONDS, what="another primary"
        )

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, decode_responses=True, socket_timeout=5)

    def _is_replicated(self) -> bool:
        try:
            with self._client(self.ports[1]) as client:
                link = client.info("replication").get("master_link_status")
                return bool(link == "up")
        except redis.RedisError:
            return False

    def _is_watched(self) -> bool:
        try:
            for port in self.sentinel_ports:
                with self._client(port) as client:
                    seen = client.sentinel_master(SERVICE)
                    if (seen["num-slaves"], seen["num-other-sentinels"]) != (1, 2):
                        return False
        except (redis.RedisError, KeyError):
            return False
        return True


@contextlib.contextmanager
def guarded(directory: Path) -> Iterator[str]:
    """A Redis with TLS, client certificates and a user with the least rights; its URL."""
    directory.mkdir()
    _make_certificates(directory)
    port = redis_server.free_port()
    options = [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {directory / 'server.crt'}",
        f"tls-key-file {directory / 'server.key'}",
        f"tls-ca-cert-file {directory / 'ca.crt'}",
        "tls-auth-clients yes",
        'save ""',
        "user default off",
        f"user dispatcher on >{PASSWORD} {' '.join(RIGHTS)}",
    ]
    server = Server("redis-server", directory / "server", options)
    tls = "&".join(
        f"{name}={directory / file}"
        for name, file in (
            ("ssl_ca_certs", "ca.crt"),
            ("ssl_certfile", "client.crt"),
            ("ssl_keyfile", "client.key"),
        )
    )
    url = f"rediss://dispatcher:{QUOTED_PASSWORD}@localhost:{port}/0?{tls}"
    try:
        waiting.wait_for(lambda: _answers(url), seconds=READY_SECONDS, what="Redis answers")
        yield url
    finally:
        server.stop()


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def _make_certificates(directory: Path) -> None:
    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(*new, "-x509", "-keyout", "ca.key", "-out", "ca.crt", "-subj", "/CN=ca")
    (directory / "names").write_text("subjectAltName=DNS:localhost,IP:127.0.0.1\n")
    for name in ("server", "client"):
        request = ("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(*new, *request)
        signed = ("-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", "names")
        issuer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-days", "2", *signed, *issuer)
