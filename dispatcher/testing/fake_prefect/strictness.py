"""How the fake Prefect API treats keys that it does not know."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A body, or part of one, in which unknown keys are an error."""

    model_config = ConfigDict(extra="forbid")


class Lenient(BaseModel):
    """A body of which the server reads what it knows."""

    model_config = ConfigDict(extra="ignore")
