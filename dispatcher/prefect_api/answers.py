"""What an answer of the Prefect API says: its content, or the error that it stands for."""

from __future__ import annotations

import inspect
from typing import Any

import httpx

from dispatcher import errors

_CSRF_COMPLAINTS = ("csrf token", "missing client identifier")
_LONGEST_DETAIL = 2000  # characters of the server's words that go into an error

_ERRORS: dict[int, type[errors.ApiResponseError]] = {
    400: errors.RequestRefused,
    401: errors.AuthenticationFailed,
    403: errors.AuthenticationFailed,
    404: errors.ObjectNotFound,
    409: errors.ObjectAlreadyExists,
    422: errors.RequestRefused,
}


def is_csrf_complaint(response: httpx.Response) -> bool:
    """Whether the server asks for a CSRF token, or for a newer one."""
    if response.status_code != 403:
        return False
    words = detail(response).lower()
    return any(complaint in words for complaint in _CSRF_COMPLAINTS)


def json(call: str, response: httpx.Response) -> Any:
    """The content of an answer, ``None`` if it is empty; ``call`` names its request.

    Raises:
        errors.ApiResponseError: it is no JSON.
    """
    if not response.content:
        return None
    try:
        return response.json()
    except ValueError:
        raise errors.ApiResponseError(
            f"{call} was answered with something else than JSON; does PREFECT_API_URL end in /api?",
            status_code=response.status_code,
        ) from None


def error(call: str, response: httpx.Response) -> errors.ApiResponseError:
    """The exception for an answer with an error's status; ``call`` names its request."""
    status, words = response.status_code, detail(response)
    kind = _ERRORS.get(status, errors.ApiResponseError)
    message = f"{call} was answered with {status}: {words or response.reason_phrase}"
    if status == 401:
        message += f" ({inspect.getdoc(kind)})"
    return kind(message, status_code=status, detail=words)


def detail(response: httpx.Response) -> str:
    """The server's words, from either shape of error body.

    Never the request body that a validation error echoes: it may hold secrets.
    """
    try:
        body = response.json()
    except ValueError:
        return ""
    if not isinstance(body, dict):
        return ""
    words = body.get("detail") or body.get("exception_message") or ""
    if isinstance(words, list):
        words = _complaints(words)
    if complaints := _complaints(body.get("exception_detail") or []):
        words = f"{words} {complaints}"
    return str(words)[:_LONGEST_DETAIL]


def _complaints(rows: Any) -> str:
    """A validation error's rows as text: where and what, without the value that was refused."""
    if not isinstance(rows, list):
        return str(rows)
    return "; ".join(
        f"{'.'.join(str(part) for part in row.get('loc', ()))}: {row.get('msg', '')}"
        for row in rows
        if isinstance(row, dict)
    )
