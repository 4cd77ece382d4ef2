"""What an executor raises; the dispatcher maps each to one outcome of the run."""

from __future__ import annotations


class ExecutorError(Exception):
    """Root of all errors that an executor raises on purpose."""


class ConfigurationError(ExecutorError):
    """A run's job configuration cannot be built; the message says what to mend, never a secret."""


class InfrastructureNotFound(ExecutorError):
    """The infrastructure to kill does not exist (any more)."""


class InfrastructureNotAvailable(ExecutorError):
    """The infrastructure to kill exists, but not where this process can reach it."""


class LaunchError(ExecutorError):
    """A job could not be started; the message names what to mend, never the command's arguments."""
