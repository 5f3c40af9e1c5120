"""The function that handles a worker's messages: its results and the exceptions that settle a delivery."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from trunkline.v1 import catalogue
from trunkline.v1.agent_service_pb2 import Reply
from trunkline.v1.message_pb2 import Message, Part

HandlerResult: TypeAlias = str | Part | Reply | Sequence[str | Part | Reply] | None
"""One reply, several, or none."""

Handler: TypeAlias = Callable[[Message], HandlerResult | Awaitable[HandlerResult]]
"""Handles one message; a plain function if it never waits."""


class Failed(Exception):
    """Raised by a handler to fail with a text for readers; the message is not redelivered.

    Inside a streamed reply it ends the reply FAILED, before any reply it makes one in this state: with
    `message` as the text of `Message.error`. Every other exception gives readers a generic text only.

    Args:
        message: The text for readers; at most 1024 characters. Empty leaves it generic, and so does anything
            but a string, such as the exception that was caught.
    """

    #: The text for readers, also of a subclass that does not call `__init__`.
    message: str = catalogue.AGENT_FAILED.text

    def __init__(self, message: str = "") -> None:
        super().__init__(message)
        if message and isinstance(message, str):
            self.message = message

    def __str__(self) -> str:
        return self.message


class RetryLater(Exception):
    """Raised by a handler to have the message redelivered after a delay.

    Later messages of the conversation wait for it. Each delivery counts as an attempt; past the limits of
    the agent the message becomes a dead letter. A streamed reply stays open for the next attempt, unless the
    delay is longer than the router keeps it.

    Args:
        after_s: Delay in seconds; at most an hour. None leaves it to the router, whose delays grow with the
            attempts.
        reason: For operators; clients never get it.

    Raises:
        ValueError: `after_s` is not a number.
    """

    def __init__(self, after_s: float | None = None, reason: str = "") -> None:
        super().__init__(after_s, reason)
        self.after_s = None if after_s is None else float(after_s)
        if self.after_s is not None and math.isnan(self.after_s):
            raise ValueError("after_s is not a number")
        self.reason = str(reason)

    def __str__(self) -> str:
        when = "later" if self.after_s is None else f"in {self.after_s:g} s"
        return f"retry {when}: {self.reason or 'no reason given'}"


class Reject(Exception):
    """Raised by a handler to reject the message, which becomes a dead letter at once.

    Readers get a failed reply with a generic text.

    Args:
        reason: Stored with the dead letter, for operators; clients never get it.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = str(reason)

    def __str__(self) -> str:
        return self.reason or "rejected"
