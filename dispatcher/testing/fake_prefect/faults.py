"""What can go wrong between a client and the fake Prefect API, on purpose."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any


class Kind(Enum):
    """What happens to a request that a fault hits."""

    REFUSED = "the server answers with an error and does nothing"
    REQUEST_LOST = "the connection breaks before the server does anything"
    REPLY_LOST = "the server does what was asked, then the connection breaks"
    DELAYED = "the server takes its time"


class ConnectionBroken(Exception):
    """There is no answer; the adapters turn this into what a client sees then."""


@dataclass
class Fault:
    """A fault and the requests that it hits.

    ``method`` is ``*`` for any; ``route`` is the path with its placeholders unfilled
    (``/flow_runs/{id}/set_state``), ``*`` for any. It hits ``times`` requests, after it let
    ``after`` of them pass. ``status`` and ``body`` are for refusals, ``seconds`` for delays.
    """

    kind: Kind
    method: str = "*"
    route: str = "*"
    times: int = 1
    after: int = 0
    status: int = 503
    body: Any = field(default_factory=lambda: {"exception_message": "Service Unavailable"})
    seconds: float = 0.0

    def hits(self, method: str, route: str) -> bool:
        """Whether the fault hits this request; counts it if so."""
        if self.times <= 0 or self.method not in {"*", method} or self.route not in {"*", route}:
            return False
        if self.after > 0:
            self.after -= 1
            return False
        self.times -= 1
        return True
