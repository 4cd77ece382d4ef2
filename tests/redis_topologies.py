"""Redis as it is run in production: Sentinels, a cluster, TLS and users of few rights."""

from __future__ import annotations

import contextlib
import functools
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib import parse

import redis
from redis import crc

from dispatcher.ledger import keys
from tests import redis_server, waiting

SERVICE = "prime"
READY_SECONDS = 60.0
# How long a primary does not answer before the Sentinels agree on another one.
DOWN_MILLISECONDS = 1500
# What keeps a primary that was replaced while it hung from taking claims meanwhile.
FENCE = ("min-replicas-to-write 1", "min-replicas-max-lag 2")

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
        self._options = dict(option.split(" ", 1) for option in options)
        self._command = [program, str(config)]
        self.start()

    def start(self) -> None:
        """Start it, with what it has kept if it keeps anything."""
        with (self.directory / "log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command, stdout=log, stderr=log, start_new_session=True
            )

    def option(self, name: str) -> str:
        """What it was told."""
        return self._options[name]

    def stop(self, number: signal.Signals = signal.SIGKILL) -> None:
        """End it."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        self.process.wait()


class Watched:
    """A primary, replicas, and three Sentinels that watch them; a context manager.

    With ``tls`` all of them talk by nothing else. With ``fenced`` a primary that has no replica
    takes nothing, as one that was replaced while it hung.
    """

    def __init__(
        self, directory: Path, *, replicas: int = 1, tls: bool = False, fenced: bool = False
    ) -> None:
        self._tls = directory / "certificates" if tls else None
        self._fence = FENCE if fenced else ()
        self.ports = [redis_server.free_port() for _ in range(1 + replicas)]
        self.sentinel_ports = [redis_server.free_port() for _ in range(3)]
        self._directory = directory
        self._servers: list[Server] = []
        self._stopped: Server | None = None
        self._paused: Server | None = None

    @property
    def url(self) -> str:
        """The address as the dispatcher is told it."""
        hosts = ",".join(f"127.0.0.1:{port}" for port in self.sentinel_ports)
        if self._tls is None:
            return f"sentinel://{hosts}/{SERVICE}"
        return f"rediss+sentinel://{hosts}/{SERVICE}?{parse.urlencode(_client_files(self._tls))}"

    def __enter__(self) -> Watched:
        first = self.ports[0]
        if self._tls is not None:
            self._tls.mkdir(parents=True)
            make_certificates(self._tls)
        for number, port in enumerate(self.ports):
            follows = [f"replicaof 127.0.0.1 {first}"] if number else []
            options = [*self._listens(port), *follows, *self._fence, 'save ""', "appendonly yes"]
            directory = self._directory / f"redis-{number}"
            self._servers.append(Server("redis-server", directory, options))
        waiting.wait_for(self._is_replicated, seconds=READY_SECONDS, what="the replica follows")
        for number, port in enumerate(self.sentinel_ports):
            options = [
                *self._listens(port),
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

    def pause(self) -> None:
        """Have the primary hang."""
        self._paused = self._servers[self.ports.index(self.primary())]
        self._paused.process.send_signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Have it go on, whether it is the primary still or has been replaced."""
        assert self._paused is not None
        self._paused.process.send_signal(signal.SIGCONT)

    def kill_primary(self) -> None:
        """Kill the primary and wait until the other one has taken over."""
        before = self.primary()
        self.stop()
        waiting.wait_for(
            lambda: self.primary() != before, seconds=READY_SECONDS, what="another primary"
        )

    def _listens(self, port: int) -> list[str]:
        return [f"port {port}"] if self._tls is None else _secured(self._tls, port)

    def _client(self, port: int) -> redis.Redis:
        scheme, query = "redis", ""
        if self._tls is not None:
            scheme, query = "rediss", f"?{parse.urlencode(_client_files(self._tls))}"
        url = f"{scheme}://127.0.0.1:{port}{query}"
        return redis.Redis.from_url(url, decode_responses=True, socket_timeout=5)

    def _is_replicated(self) -> bool:
        try:
            for port in self.ports[1:]:
                with self._client(port) as client:
                    if client.info("replication").get("master_link_status") != "up":
                        return False
        except redis.RedisError:
            return False
        return True

    def _is_watched(self) -> bool:
        try:
            for port in self.sentinel_ports:
                with self._client(port) as client:
                    seen = client.sentinel_master(SERVICE)
                    known = (seen["num-slaves"], seen["num-other-sentinels"])
                    if known != (len(self.ports) - 1, 2):
                        return False
        except (redis.RedisError, KeyError):
            return False
        return True


class Cluster:
    """Three primaries and a replica of that one which has the ledger; a context manager.

    ``options`` are for each server.
    """

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        self.ports = [redis_server.free_port() for _ in range(4)]
        self._directory = directory
        self._options = options
        self._servers: list[Server] = []

    @property
    def url(self) -> str:
        """The address as the dispatcher is told it."""
        return f"redis+cluster://{','.join(f'127.0.0.1:{port}' for port in self.ports)}"

    def __enter__(self) -> Cluster:
        for port in self.ports:
            options = [
                f"port {port}",
                f"cluster-port {redis_server.free_port()}",
                "cluster-enabled yes",
                f"cluster-node-timeout {DOWN_MILLISECONDS}",
                'save ""',
                "appendonly yes",
                *self._options,
            ]
            self._servers.append(Server("redis-server", self._directory / str(port), options))
        for port in self.ports:
            waiting.wait_for(
                functools.partial(_answers, f"redis://127.0.0.1:{port}"),
                seconds=READY_SECONDS,
                what="a node of the cluster answers",
            )
        self._join()
        return self

    def __exit__(self, *_exc_info: object) -> None:
        for server in self._servers:
            server.stop()

    def primary(self) -> int:
        """The port of who has the ledger now, by what the first node but that says."""
        for port in self.ports:
            with contextlib.suppress(redis.RedisError), self._client(port) as client:
                for start, end, node, *_ in client.execute_command("CLUSTER SLOTS"):
                    if start <= self.slot <= end:
                        return int(node[1])
        return 0

    @property
    def slot(self) -> int:
        """Where all keys of the ledger are."""
        return crc.key_slot(keys.PREFIX.encode())

    def kill_primary(self) -> None:
        """Kill who has the ledger and wait until its replica has taken over."""
        before = self.primary()
        self._servers[self.ports.index(before)].stop()
        with self._client(next(port for port in self.ports if port != before)) as client:
            waiting.wait_for(
                lambda: (
                    client.cluster("info")["cluster_state"] == "ok" and self.primary() != before
                ),
                seconds=READY_SECONDS,
                what="the replica has taken over",
            )

    def move_slot(self) -> None:
        """Give the ledger to another primary, key by key, as an operator would."""
        source = self.primary()
        target = next(port for port in self._primaries() if port != source)
        with self._client(source) as giving, self._client(target) as taking:
            ids = {client: client.execute_command("CLUSTER MYID") for client in (giving, taking)}
            taking.execute_command("CLUSTER SETSLOT", self.slot, "IMPORTING", ids[giving])
            giving.execute_command("CLUSTER SETSLOT", self.slot, "MIGRATING", ids[taking])
            while names := giving.execute_command("CLUSTER GETKEYSINSLOT", self.slot, 10):
                giving.migrate("127.0.0.1", target, names, 0, 5000)
            for port in self._primaries():
                with self._client(port) as told:
                    told.execute_command("CLUSTER SETSLOT", self.slot, "NODE", ids[taking])

    def _primaries(self) -> list[int]:
        with self._client(self.ports[0]) as client:
            return [node[1] for _, _, node, *_ in client.execute_command("CLUSTER SLOTS")]

    def _join(self) -> None:
        shares = [(0, 5460), (5461, 10922), (10923, 16383)]
        owner = next(
            port
            for port, share in zip(self.ports, shares, strict=False)
            if share[0] <= self.slot <= share[1]
        )
        for port, share in zip(self.ports, shares, strict=False):
            with self._client(port) as client:
                client.execute_command("CLUSTER ADDSLOTSRANGE", *share)
        with self._client(self.ports[0]) as first:
            for port, server in zip(self.ports[1:], self._servers[1:], strict=True):
                bus = server.option("cluster-port")
                first.execute_command("CLUSTER MEET", "127.0.0.1", port, bus)
        with self._client(owner) as client:
            name = client.execute_command("CLUSTER MYID")
        with self._client(self.ports[-1]) as replica:
            waiting.wait_for(
                lambda: name in str(replica.execute_command("CLUSTER NODES")),
                seconds=READY_SECONDS,
                what="the replica knows who has the ledger",
            )
            replica.execute_command("CLUSTER REPLICATE", name)
            waiting.wait_for(
                lambda: replica.info("replication").get("master_link_status") == "up",
                seconds=READY_SECONDS,
                what="the replica follows",
            )
        for port in self.ports:
            with self._client(port) as client:
                waiting.wait_for(
                    functools.partial(_is_whole, client),
                    seconds=READY_SECONDS,
                    what="the cluster is whole",
                )

    def _client(self, port: int) -> redis.Redis:
        return redis.Redis(port=port, decode_responses=True, socket_timeout=5)


def _is_whole(node: redis.Redis) -> bool:
    told = node.cluster("info")
    return bool(told["cluster_state"] == "ok" and told["cluster_known_nodes"] == "4")


@contextlib.contextmanager
def guarded(directory: Path) -> Iterator[str]:
    """A Redis with TLS, client certificates and a user with the least rights; its URL."""
    directory.mkdir()
    make_certificates(directory)
    port = redis_server.free_port()
    options = [
        *_secured(directory, port),
        'save ""',
        "user default off",
        f"user dispatcher on >{PASSWORD} {' '.join(RIGHTS)}",
    ]
    server = Server("redis-server", directory / "server", options)
    tls = parse.urlencode(_client_files(directory))
    url = f"rediss://dispatcher:{QUOTED_PASSWORD}@localhost:{port}/0?{tls}"
    try:
        waiting.wait_for(lambda: _answers(url), seconds=READY_SECONDS, what="Redis answers")
        yield url
    finally:
        server.stop()


def _secured(directory: Path, port: int) -> list[str]:
    """What a server is told that talks to nobody without a certificate."""
    return [
        "port 0",
        f"tls-port {port}",
        f"tls-cert-file {directory / 'server.crt'}",
        f"tls-key-file {directory / 'server.key'}",
        f"tls-ca-cert-file {directory / 'ca.crt'}",
        "tls-auth-clients yes",
        "tls-replication yes",
    ]


def _client_files(directory: Path) -> dict[str, str]:
    """What its clients are told."""
    return {
        "ssl_ca_certs": str(directory / "ca.crt"),
        "ssl_certfile": str(directory / "client.crt"),
        "ssl_keyfile": str(directory / "client.key"),
    }


def _answers(url: str) -> bool:
    try:
        with redis.Redis.from_url(url) as client:
            return bool(client.ping())
    except redis.ConnectionError:
        return False


def make_certificates(directory: Path) -> None:
    """Make an authority, and what it has signed for a server on this host and for a client."""

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new = ("req", "-newkey", "rsa:2048", "-nodes", "-days", "2")
    openssl(
        *new,
        "-x509",
        "-keyout",
        "ca.key",
        "-out",
        "ca.crt",
        "-subj",
        "/CN=ca",
        "-addext",
        "keyUsage=critical,keyCertSign,cRLSign",
    )
    (directory / "names").write_text(
        # As later Pythons want it.
        "subjectAltName=DNS:localhost,IP:127.0.0.1\nauthorityKeyIdentifier=keyid\n"
    )
    for name in ("server", "client"):
        request = ("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        openssl(*new, *request)
        signed = ("-in", f"{name}.csr", "-out", f"{name}.crt", "-extfile", "names")
        issuer = ("-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial")
        openssl("x509", "-req", "-days", "2", *signed, *issuer)
