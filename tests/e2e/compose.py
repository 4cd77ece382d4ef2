"""The stack of ``docker-compose.yml`` under a project name, ports and passwords of its own."""

from __future__ import annotations

import base64
import json
import os
import shutil
import socket
import subprocess
import urllib.error
import urllib.request
import uuid
from collections.abc import Sequence
from pathlib import Path

import docker
from docker.models.containers import Container

from dispatcher.prefect_api import client as clients
from dispatcher.prefect_api import schemas, transport
from dispatcher.testing import prefect_objects
from tests import waiting
from tests.e2e import engine, sample_runs

ROOT = Path(__file__).parents[2]
FILES = ("docker-compose.yml", "docker-compose.docker.yml")
SOCKET = Path("/var/run/docker.sock")

COMMAND_SECONDS = 240.0
HEALTHY_SECONDS = 120.0
STOP_SECONDS = 60

PROJECT_LABEL = "com.docker.compose.project"
SERVICE_LABEL = "com.docker.compose.service"

State = schemas.StateType


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def command() -> list[str]:
    """Compose, whichever of its two generations is installed."""
    if shutil.which("docker-compose"):
        return ["docker-compose"]
    return ["docker", "compose"]


class Stack(sample_runs.SampleRuns):
    """One installation; ``options`` are variables of ``.env.example``."""

    def __init__(self, *, files: Sequence[str] = FILES, **options: str) -> None:
        self.files = tuple(files)
        self.project = f"e2e{uuid.uuid4().hex[:8]}"
        self.passwords = [uuid.uuid4().hex for _ in range(3)]
        self.prefect_port, self.flower_port = free_port(), free_port()
        self.options = {
            "REDIS_PASSWORD": self.passwords[0],
            "POSTGRES_PASSWORD": self.passwords[1],
            "FLOWER_PASSWORD": self.passwords[2],
            "PREFECT_PORT": str(self.prefect_port),
            "FLOWER_PORT": str(self.flower_port),
            "STOP_TIMEOUT": str(STOP_SECONDS),
            "STOP_GRACE_PERIOD": f"{STOP_SECONDS + 15}s",
            "DISPATCHER_IMAGE": engine.OUR_IMAGE,
            "DOCKER_GID": str(SOCKET.stat().st_gid),
            **options,
        }
        self.docker = docker.from_env()
        api = transport.Transport(f"http://127.0.0.1:{self.prefect_port}/api")
        self.prefect = clients.PrefectClient(api)
        super().__init__(prefect_objects.PrefectObjects(self.prefect))

    @property
    def network(self) -> str:
        return f"{self.project}_default"

    def compose(self, *arguments: str) -> str:
        """Run Compose; return what it printed."""
        files = [part for file in self.files for part in ("--file", file)]
        done = subprocess.run(
            [*command(), "--project-name", self.project, *files, *arguments],
            cwd=ROOT,
            env={**os.environ, **self.options},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=COMMAND_SECONDS,
            check=False,
        )
        assert done.returncode == 0, f"{arguments}: {done.stdout}\n{done.stderr}"
        return done.stdout

    def up(self, *arguments: str) -> None:
        """Start what is missing and wait until all of it is healthy."""
        self.compose("up", "--detach", "--no-build", *arguments)
        self.wait_healthy()

    def down(self) -> None:
        """Remove everything."""
        self.compose("down", "--volumes", "--timeout", "5")
        self.prefect.transport.close()
        self.docker.close()

    def containers(self, service: str | None = None, *, all: bool = False) -> list[Container]:  # noqa: A002
        labels = [f"{PROJECT_LABEL}={self.project}"]
        if service is not None:
            labels.append(f"{SERVICE_LABEL}={service}")
        return self.docker.containers.list(all=all, filters={"label": labels}, ignore_removed=True)

    def wait_healthy(self) -> None:
        def health() -> dict[str, str]:
            return {
                str(each.name): each.attrs["State"].get("Health", {}).get("Status", "none")
                for each in self.containers()
            }

        waiting.wait_for(
            lambda: set(health().values()) == {"healthy"},
            seconds=HEALTHY_SECONDS,
            every=0.5,
            what="all containers are healthy",
        )

    def dispatcher(self, *arguments: str) -> str:
        """Run ``dispatcher …`` in the control worker's container."""
        return self.compose("exec", "-T", "control", "dispatcher", *arguments)

    def nodes(self) -> list[str]:
        """The Celery workers that report slots for runs."""
        status = json.loads(self.dispatcher("status", "--output", "json"))
        return [each["name"] for each in status["workers"] if each["slots"]]

    def logs(self) -> str:
        return self.compose("logs", "--no-color", "--tail", "200")

    # Flower

    def flower(self, path: str, *, password: str | None = None) -> tuple[int, str]:
        """Ask Flower; the status and the text of its answer."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.flower_port}{path}")
        if password is not None:
            token = base64.b64encode(f"admin:{password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=10) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()
