"""The Lua scripts of this room: each operation happens whole or not at all."""

from __future__ import annotations

from importlib import resources
from typing import Any

from redis import Redis
from redis.commands.core import Script


def script(redis: Redis, name: str, *, after: str = "") -> Any:
    """One of the Lua scripts in ``lua/``, ready to be called.

    ``after`` is another one, whose functions it uses.
    """
    folder = resources.files(__package__).joinpath("lua")
    parts = [folder.joinpath(f"{part}.lua").read_text("utf-8") for part in (after, name) if part]
    registered: Script = redis.register_script("\n".join(parts))
    return registered
