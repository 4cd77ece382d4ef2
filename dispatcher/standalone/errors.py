"""What can go wrong with the stack on one machine.

As in ``dispatcher.errors``, an exception's docstring is its default message.
"""

from __future__ import annotations

from dispatcher import errors


class StandaloneError(errors.DispatcherError):
    """The standalone stack could not run."""

    reason = "standalone"


class MissingExtra(StandaloneError):
    """A part of the standalone stack is not installed."""

    reason = "standalone-missing-extra"


class DataDirectoryUnusable(StandaloneError):
    """The data directory cannot be used."""

    reason = "standalone-data-directory"


class PortUnusable(StandaloneError):
    """A port is in use by another program."""

    reason = "standalone-port"


class ComponentFailed(StandaloneError):
    """A part of the standalone stack does not start or does not stay up."""

    reason = "standalone-component"


class StopRequested(StandaloneError):
    """The stack was asked to stop before it was ready."""

    reason = "standalone-stopped"


class DemoFailed(StandaloneError):
    """A run of the demo did not end as it has to."""

    reason = "standalone-demo"
