"""The function that handles a worker's messages: its results and the exceptions that settle a delivery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeAlias

from trunkline.v1.agent_service_pb2 import Reply
from trunkline.v1.message_pb2 import Message, Part

HandlerResult: TypeAlias = str | Part | Reply | Sequence[str | Part | Reply] | None
"""One reply, several, or none."""

Handler: TypeAlias = Callable[[Message], HandlerResult | Awaitable[HandlerResult]]
"""Handles one message; a plain function if it never waits."""


class RetryLater(Exception):
    """Raised by a handler to have the message redelivered after a delay.

    Later messages of the conversation wait for it. Each delivery counts as an attempt; past the router's
    limit the message becomes a dead letter. A streamed reply stays open for the next attempt, unless the
    delay is longer than the router keeps it.

    Args:
        after_s: Delay in seconds; at most an hour.
        reason: Stored with the delivery, for people.
    """

    def __init__(self, after_s: float = 1.0, reason: str = "") -> None:
        super().__init__(after_s, reason)
        self.after_s = after_s
        self.reason = reason

    def __str__(self) -> str:
        return f"retry in {self.after_s:g} s: {self.reason or 'no reason given'}"


class Reject(Exception):
    """Raised by a handler to reject the message, which becomes a dead letter at once.

    Args:
        reason: Stored with the dead letter, for people.
    """

    def __init__(self, reason: str = "") -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return self.reason or "rejected"
