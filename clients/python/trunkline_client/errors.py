"""What the client raises.

TrunklineError
├── Refused        a request was refused for a reason of the catalogue
├── Closed         the connection ended and must not be made again
├── Unreachable    nobody could be reached, or not in time
├── Disconnected   the connection broke, and what was asked for cannot be asked again
├── QueueFull       too much waits for its answer already
├── TimedOut       no answer in time (also a TimeoutError)
│   of messages that are said piece by piece:
├── ReplyCancelled   its readers have stopped it
├── ReplyExpired     it was left alone for too long
├── Fenced           somebody else has taken it up
└── AlreadyAnswered  it was said before
"""

from __future__ import annotations

from trunkline.v1.message_pb2 import Message, MessageState


class TrunklineError(Exception):
    """Whatever this package raises."""


class Refused(TrunklineError):
    """A request was refused; nothing of it was done.

    `code` is the name of a `trunkline.v1.ErrorCode`. Where `retryable`, the same request may succeed
    after `retry_after_ms` (0 leaves the wait to the caller).
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
    """The connection was closed for good; connecting again the same way would end the same way.

    `code` is the WebSocket close code, `reason` the name of an ErrorCode or empty. After an orderly
    `Client.close` the code is 1000.
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


class Unreachable(TrunklineError):
    """Nobody could be reached at the address."""

    def __init__(self, where: str, why: str) -> None:
        super().__init__(where, why)
        self.where = where
        self.why = why

    def __str__(self) -> str:
        return f"Cannot reach {self.where}: {self.why}"


class Disconnected(TrunklineError):
    """There is no connection, or it broke with this unanswered. It may or may not have been done."""


class QueueFull(TrunklineError):
    """Too much waits for its answer already; wait for some of it, or use the form that waits."""


class TimedOut(TrunklineError, TimeoutError):
    """No answer came in time. It may or may not have been done; asking again with the same id is safe."""


class ReplyCancelled(TrunklineError):
    """Readers have stopped this message, or do not want the reply that was going to be opened.

    A handler need not catch it: its delivery is then settled without more replies.
    """


class ReplyExpired(TrunklineError):
    """The router heard nothing of this message for too long, and has ended it as EXPIRED.

    A handler that lets it through is called again, and then opens another reply.
    """


class Fenced(TrunklineError):
    """What this process worked on is in other hands: another worker or producer has taken it up.

    A handler that lets it through ends without a trace.
    """


class AlreadyAnswered(TrunklineError):
    """The message that was to be opened has ended: an earlier attempt has said it.

    A handler need not catch it: its delivery is then settled without more replies.
    """

    def __init__(self, message: Message) -> None:
        super().__init__(message)
        self.message = message

    def __str__(self) -> str:
        state = MessageState.Name(self.message.state).removeprefix("MESSAGE_STATE_")
        return f"Message {self.message.id} has been said: it is {state}"
