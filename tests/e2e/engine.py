"""Whether there is a Docker engine with the images that the tests need."""

from __future__ import annotations

import functools

from executors.docker import engine, images

PYTHON_IMAGE = "python:3.11-slim"
REDIS_IMAGE = "redis:7"
POSTGRES_IMAGE = "postgres:16"
OUR_IMAGE = "celery-flow-dispatcher"

NEEDED = (PYTHON_IMAGE, REDIS_IMAGE, POSTGRES_IMAGE, OUR_IMAGE)


@functools.cache
def why_not() -> str | None:
    """Why these tests cannot run here; ``None`` if they can."""
    try:
        with engine.connect() as client:
            missing = [image for image in NEEDED if not images.is_present(client, image)]
    except engine.EngineAway as error:
        return f"no Docker engine: {error}"
    return f"images are missing ({', '.join(missing)}); run: make e2e" if missing else None
