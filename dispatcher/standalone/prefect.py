"""The Prefect server of the stack, on SQLite."""

from __future__ import annotations

import signal
import sys
from collections.abc import Mapping
from pathlib import Path

from dispatcher.prefect_api import transport
from dispatcher.standalone import ports, readiness
from dispatcher.standalone.component import Component, StopStep

NAME = "prefect"
PREFERRED_PORT = 4200  # Prefect's own
READY_SECONDS = 120.0  # the first start creates the database
STOP = (StopStep(signal.SIGTERM, 10.0),)


def ui_url(port: int) -> str:
    """Return the address for the browser."""
    return f"http://{ports.LOOPBACK}:{port}"


def api_url(port: int) -> str:
    """Return what PREFECT_API_URL has to be."""
    return f"{ui_url(port)}/api"


def has_work_pool(port: int, name: str) -> bool:
    """Return whether the server knows a work pool."""
    return readiness.http_answers(port, f"/api/work_pools/{transport.quote(name)}")


def component(home: Path, *, port: int, environment: Mapping[str, str]) -> Component:
    """Describe a server with its UI, on the loopback interface, without telemetry."""
    where = ("--host", ports.LOOPBACK, "--port", str(port))
    return Component(
        name=NAME,
        command=(sys.executable, "-m", "prefect", "server", "start", *where),
        environment={**environment, "PREFECT_SERVER_ANALYTICS_ENABLED": "false"},
        directory=home,  # and not the user's, where a prefect.toml or .env may be
        is_ready=lambda: readiness.http_answers(port, "/api/ready"),
        ready_seconds=READY_SECONDS,
        stop=STOP,
        address=ui_url(port),
    )
