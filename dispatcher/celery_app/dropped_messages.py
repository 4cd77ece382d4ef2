"""What a worker receives and cannot make anything of: it says so, counts it, and goes on."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from dispatcher.celery_app import messages

logger = logging.getLogger(__name__)

Receive = Callable[[Any], Any]


class DroppedMessages:
    """Counts them, for one worker."""

    def __init__(self) -> None:
        self.count = 0

    def note(self, headers: Any, why: str) -> None:
        """Count one, and say so in one line of bounded length."""
        self.count += 1
        logger.warning("a message was dropped (%s): %s", messages.name_of(headers), why)

    def drop(self, message: Any, why: str, connection_errors: tuple[type[Exception], ...]) -> None:
        """Note one, and take it from the broker."""
        self.note(message.headers, why)
        message.ack_log_error(logger, connection_errors)

    def before(self, receive: Receive, connection_errors: tuple[type[Exception], ...]) -> Receive:
        """Have what receives messages get those of the dispatcher alone."""

        def receive_ours(message: Any) -> Any:
            try:
                messages.check(message)
            except messages.ForeignMessageError as error:
                return self.drop(message, str(error), connection_errors)
            return receive(message)

        return receive_ours
