"""What the routes of the fake Prefect API take and give: requests, answers, errors."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar
from uuid import UUID

import pydantic

from dispatcher.testing.fake_prefect import store

PAGE_LIMIT = 200  # the most rows that one answer holds

B = TypeVar("B", bound=pydantic.BaseModel)


class Answer(NamedTuple):
    """An HTTP status and a JSON body, ``None`` for an empty one."""

    status: int
    body: Any = None


@dataclass(frozen=True)
class Request:
    """A request that found its route; ``names`` are the parts of the path that vary."""

    store: store.Store
    names: Mapping[str, str]
    params: Mapping[str, str] = field(default_factory=dict)
    json: Any = None

    @property
    def id(self) -> UUID:
        """The id in the path; routes are matched only by what is one."""
        return UUID(self.names["id"])

    def body(self, kind: type[B]) -> B:
        """The body, read as ``kind``.

        Raises:
            Refusal: 422, in the server's words.
        """
        try:
            return kind.model_validate({} if self.json is None else self.json)
        except pydantic.ValidationError as error:
            raise invalid(error, self.json) from error

    def rows(self, kind: type[B]) -> list[B]:
        """The body, read as a list of ``kind``."""
        try:
            return pydantic.TypeAdapter(list[kind]).validate_python(self.json)  # type: ignore[valid-type]
        except pydantic.ValidationError as error:
            raise invalid(error, self.json) from error


Handler = Callable[[Request], Answer]


class Refusal(Exception):
    """The answer to a request is an error; ``answer`` is that."""

    def __init__(self, status: int, body: Mapping[str, Any]) -> None:
        super().__init__(f"{status}: {body}")
        self.answer = Answer(status, dict(body))


def refusal(status: int, detail: str) -> Refusal:
    """An error as most routes give it."""
    return Refusal(status, {"detail": detail})


def not_found(detail: str = "Not Found") -> Refusal:
    """A 404."""
    return refusal(404, detail)


def invalid(error: pydantic.ValidationError, body: Any) -> Refusal:
    """A 422 about the content of a body."""
    rows = error.errors(include_url=False, include_context=False)
    details = [{**row, "loc": ["body", *row["loc"]]} for row in rows]
    message = "Invalid request received."
    return Refusal(
        422, {"exception_message": message, "exception_detail": details, "request_body": body}
    )


def page_limit(limit: int | None) -> int:
    """The number of rows to answer with.

    Raises:
        Refusal: 422, more than a server is willing to give at once.
    """
    if limit is None:
        return PAGE_LIMIT
    if not 0 <= limit <= PAGE_LIMIT:
        raise refusal(422, f"Invalid limit: must be less than or equal to {PAGE_LIMIT}.")
    return limit
