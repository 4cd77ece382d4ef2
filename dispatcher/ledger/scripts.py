"""The Lua scripts of this room: each operation happens whole or not at all."""

from __future__ import annotations

from importlib import resources
from typing import Any

from redis import Redis
from redis.commands.core import Script


def script(redis: Redis, name: str) -> Any:
    """One of the Lua scripts in ``lua/``, ready to be called."""
    source = resources.files(__package__).joinpath("lua", f"{name}.lua").read_text("utf-8")
    registered: Script = redis.register_script(source)
    return registered
