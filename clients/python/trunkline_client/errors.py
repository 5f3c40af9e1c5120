"""Exceptions that this package raises.

TrunklineError
├── Refused            the server rejected the request; nothing of it was done
├── Closed             the connection ended for good; the same client cannot reconnect
├── TransportError     no answer was received
│   ├── Unreachable      nothing was done: retrying is safe
│   └── OutcomeUnknown   it may have been done: retry with the same idempotency key
│       └── TimedOut       no answer arrived in time (also a TimeoutError)
├── QueueFull          a queue is at its bound
│   from messages that are written piece by piece:
├── ReplyCancelled     readers stopped it
├── ReplyExpired       the router ended it after its lease ran out
├── Fenced             another producer took it over
└── AlreadyAnswered    it ended before this producer opened it
"""

from __future__ import annotations

from trunkline.v1.message_pb2 import Message, MessageState


class TrunklineError(Exception):
    """Base of all exceptions of this package."""


class Refused(TrunklineError):
    """The server rejected the request; nothing of it was done.

    Attributes:
        code: Name of a `trunkline.v1.ErrorCode`, or of the gRPC or HTTP status if the rejection came
            from something in front of the server (`UNIMPLEMENTED`, `HTTP_403`).
        message: The reason, for people.
        retryable: Whether the same request may succeed later.
        retry_after_ms: Time to wait before retrying; 0 leaves it to the caller.
    """

    def __init__(self, code: str, message: str, *, retryable: bool = False, retry_after_ms: int = 0) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message
        self.retryable = retryable
        self.retry_after_ms = retry_after_ms

    def __str__(self) -> str:
        return f"{self.message} ({self.code})"


class Closed(TrunklineError):
    """The connection was closed for good; reconnecting the same way would end the same way.

    Attributes:
        code: The WebSocket close code; 1000 after an orderly `Client.close`.
        reason: Name of a `trunkline.v1.ErrorCode`, or empty.
        message: The reason, for people.
    """

    def __init__(self, code: int, reason: str, message: str) -> None:
        super().__init__(code, reason, message)
        self.code = code
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return (
            f"{self.message} ({self.code} {self.reason})" if self.reason else f"{self.message} ({self.code})"
        )


class TransportError(TrunklineError):
    """No answer was received; the subclass says what is known about the effect of the request.

    Attributes:
        retryable: Whether the same request may succeed later.
    """

    def __init__(self, *args: object, retryable: bool = True) -> None:
        super().__init__(*args)
        self.retryable = retryable


class Unreachable(TransportError):
    """The server could not be reached and nothing was done, so retrying is safe.

    Either the request was never sent, or it was a read, which changes nothing.

    Attributes:
        target: The address or URL that could not be reached.
        reason: Why, for people.
        retryable: Whether the same request may succeed later.
    """

    def __init__(self, target: str, reason: str, *, retryable: bool = True) -> None:
        super().__init__(target, reason, retryable=retryable)
        self.target = target
        self.reason = reason

    def __str__(self) -> str:
        return f"Cannot reach {self.target}: {self.reason}"


class OutcomeUnknown(TransportError):
    """The request was sent and may have been carried out, but no answer was received.

    Retrying with the same idempotency key (`id` of a `Client`, `idempotency_key` of a `Backend`) carries
    it out at most once; retrying without one may do it twice.

    Attributes:
        retryable: Whether the same request may succeed later.
        retry_after_ms: Time to wait before retrying; 0 leaves it to the caller.
    """

    def __init__(self, message: str, *, retryable: bool = True, retry_after_ms: int = 0) -> None:
        super().__init__(message, retryable=retryable)
        self.retry_after_ms = retry_after_ms


class TimedOut(OutcomeUnknown, TimeoutError):
    """The request was sent, and no answer arrived in time."""


class QueueFull(TrunklineError):
    """Too many requests are unanswered; wait for some, or use the call that waits for room."""


class ReplyCancelled(TrunklineError):
    """Readers cancelled this message, or the reply that was about to be opened.

    A handler need not catch it: its delivery is then acknowledged without further replies.
    """


class ReplyExpired(TrunklineError):
    """The router received nothing for this message for longer than its lease, and ended it EXPIRED.

    A handler that lets it propagate is called again, and opens a new reply.
    """


class Fenced(TrunklineError):
    """Another worker or producer has taken over this message or delivery, or its handler has ended.

    A handler that lets it propagate ends without settling its delivery.
    """


class AlreadyAnswered(TrunklineError):
    """The message that was being opened has already ended: an earlier attempt completed it.

    A handler need not catch it: its delivery is then acknowledged without further replies.

    Attributes:
        message: The message as it ended.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        state = MessageState.Name(self.message.state).removeprefix("MESSAGE_STATE_")
        return f"Message {self.message.id} has already ended {state}"
