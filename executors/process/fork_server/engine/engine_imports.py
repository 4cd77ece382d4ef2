"""What a run of Prefect's engine imports."""

from __future__ import annotations

ENGINE_MODULE = "prefect.engine"

# What an empty flow run of Prefect 3.8 has imported at its end. A name that another version does
# not know is left out.
NAMES = (
    "prefect",
    "prefect.main",
    "prefect.flow_engine",
    "prefect.task_engine",
    "prefect._internal.metrics",
    "prefect._internal.observers",
    "prefect.client.orchestration",
    "prefect.deployments.steps",
    "prefect.runner.storage",
    "anyio._backends._asyncio",
    "anyio.abc",
    "anyio.streams.tls",
    "encodings.idna",
    "pydantic.v1",
    "rich._emoji_codes",
    "runpy",
)
