"""Every exception of the dispatcher, by the phase in which it happens.

An exception's docstring is its default message, so each text exists once. ``reason`` is the
stable code that users and log searches can rely on.
"""

from __future__ import annotations

import inspect


class DispatcherError(Exception):
    """The dispatcher could not do what was asked."""

    reason = "dispatcher-error"

    def __init__(self, message: str | None = None) -> None:
        super().__init__(message or inspect.getdoc(type(self)) or self.reason)


class SettingsError(DispatcherError):
    """A setting is missing or wrong."""

    reason = "settings"


class UnknownWorker(DispatcherError):
    """No live Celery worker has this name."""

    reason = "unknown-worker"


class ApiError(DispatcherError):
    """A request to the Prefect API failed."""

    reason = "api"


class ApiUnreachable(ApiError):
    """The Prefect API could not be reached; check PREFECT_API_URL and that the server runs."""

    reason = "api-unreachable"


class EventsRefused(ApiError):
    """The Prefect API has no stream of events, or refuses the credentials for it."""

    reason = "api-events"


class ApiResponseError(ApiError):
    """The Prefect API answered with an error.

    ``status_code`` is the HTTP status, ``detail`` the server's own words.
    """

    reason = "api-response"

    def __init__(
        self, message: str | None = None, *, status_code: int = 0, detail: str = ""
    ) -> None:
        super().__init__(message)
        self.status_code = status_code
        self.detail = detail


class AuthenticationFailed(ApiResponseError):
    """The Prefect API refused the credentials; check PREFECT_API_KEY or PREFECT_API_AUTH_STRING."""

    reason = "api-authentication"


class ObjectNotFound(ApiResponseError):
    """The Prefect API has no such object."""

    reason = "api-not-found"


class DeploymentNotFound(ObjectNotFound):
    """The deployment of a flow run no longer exists."""

    reason = "deployment-not-found"


class ObjectAlreadyExists(ApiResponseError):
    """The Prefect API already has such an object."""

    reason = "api-already-exists"


class RequestRefused(ApiResponseError):
    """The Prefect API refused the content of a request."""

    reason = "api-refused"


class BulkNotSupported(ApiResponseError):
    """The Prefect server is too old (before 3.6.16) to set the states of several runs at once."""

    reason = "api-bulk-not-supported"
